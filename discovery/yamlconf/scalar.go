// SPDX-License-Identifier: Apache-2.0

package yamlconf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"
)

// scalar returns the node if it is a scalar with one of the tags.
func (v Value) scalar(allowed string, tags ...string) (string, bool) {
	if v.node == nil {
		return "", false
	}
	n := resolve(v.node)
	if n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.Tag) {
		v.reject(allowed)
		return "", false
	}
	return n.Value, true
}

// Text returns a string that is not empty. A number or a boolean is refused:
// it must be quoted if it is meant as text.
func (v Value) Text() string {
	s, ok := v.scalar("a string (quote it if it looks like a number)", "!!str")
	if ok && strings.TrimSpace(s) == "" {
		v.reject("a string that is not empty")
	}
	return s
}

// Scalar returns a string or a number, as it is written.
func (v Value) Scalar() string {
	s, ok := v.scalar("a string or a number", "!!str", "!!int")
	if ok && s == "" {
		v.reject("a string that is not empty")
	}
	return s
}

// OneOf returns one of the words.
func (v Value) OneOf(words ...string) string {
	allowed := strings.Join(words, ", ")
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return ""
	}
	if !slices.Contains(words, s) {
		v.reject(allowed)
		return ""
	}
	return s
}

// Bool returns true or false.
func (v Value) Bool() bool {
	s, ok := v.scalar("true or false", "!!bool")
	return ok && strings.EqualFold(s, "true")
}

// Int returns a whole number from low to high.
func (v Value) Int(low, high int64) int64 {
	allowed := fmt.Sprintf("a number from %d to %d", low, high)
	if _, ok := v.scalar(allowed, "!!int"); !ok {
		return 0
	}
	var n int64
	if err := resolve(v.node).Decode(&n); err != nil || n < low || n > high {
		v.reject(allowed)
		return 0
	}
	return n
}

// Port returns a port number.
func (v Value) Port() uint16 { return uint16(v.Int(1, 65535)) }

// Duration returns a duration from low to high, written as Go does ("1m30s").
func (v Value) Duration(low, high time.Duration) time.Duration {
	allowed := fmt.Sprintf("a duration with a unit, such as 5s, from %v to %v", low, high)
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < low || d > high {
		v.reject(allowed)
		return 0
	}
	return d
}

// Addr returns an IP address without a zone; IPv4-mapped ones as IPv4.
func (v Value) Addr() netip.Addr {
	const allowed = "an IPv4 or IPv6 address without a zone"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		v.reject(allowed)
		return netip.Addr{}
	}
	return a.Unmap()
}

// AddrPort returns an IP address without a zone and a port that is not 0.
func (v Value) AddrPort() netip.AddrPort {
	const allowed = "an address with a port, such as 127.0.0.1:80 or [::1]:80"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Zone() != "" || a.Port() == 0 {
		v.reject(allowed)
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Prefix returns a CIDR; a bare address stands for itself alone.
func (v Value) Prefix() netip.Prefix {
	const allowed = "a CIDR such as 10.0.0.0/8 or fd00::/8, or an address"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return netip.Prefix{}
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		v.reject(allowed)
		return netip.Prefix{}
	case p != p.Masked():
		v.reject(fmt.Sprintf("a network address; did you mean %s or %s/%d?", p.Masked(), p.Addr(), p.Addr().BitLen()))
		return netip.Prefix{}
	}
	return p
}

// Identity returns a SPIFFE ID with a path.
func (v Value) Identity() spiffeid.ID {
	const allowed = "a SPIFFE ID such as spiffe://example.org/ns/default/sa/web"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromString(s)
	if err != nil || id.Path() == "" {
		v.reject(allowed)
		return spiffeid.ID{}
	}
	return id
}

// TrustDomain returns the name of a trust domain.
func (v Value) TrustDomain() spiffeid.TrustDomain {
	const allowed = "the name of a trust domain, such as example.org"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return spiffeid.TrustDomain{}
	}
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil || strings.Contains(s, "/") {
		v.reject(allowed)
		return spiffeid.TrustDomain{}
	}
	return td
}

// Label returns a DNS label in lower case, as names of services and workloads
// are (RFC 1123 section 2.1).
func (v Value) Label() string {
	const allowed = "at most 63 of a-z, 0-9 and -, with - neither first nor last"
	s, ok := v.scalar(allowed, "!!str")
	if ok && !IsLabel(s) {
		v.reject(allowed)
		return ""
	}
	return s
}

// Hostname returns a DNS name in lower case without the trailing dot.
func (v Value) Hostname() string {
	const allowed = "a DNS name in lower case, without a trailing dot"
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return ""
	}
	_, notAddr := netip.ParseAddr(s)
	if len(s) > 253 || notAddr == nil || slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return !IsLabel(l) }) {
		v.reject(allowed)
		return ""
	}
	return s
}

// IsLabel reports whether s is a DNS label in lower case.
func IsLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

// AbsolutePath returns a path that begins with "/" and has no "." or "..".
func (v Value) AbsolutePath() string {
	const allowed = `an absolute path without "." and ".."`
	s, ok := v.scalar(allowed, "!!str")
	if !ok {
		return ""
	}
	parts := strings.Split(strings.TrimSuffix(s, "/"), "/")
	if !strings.HasPrefix(s, "/") || strings.ContainsRune(s, 0) || slices.Contains(parts, ".") || slices.Contains(parts, "..") || slices.Contains(parts[1:], "") {
		v.reject(allowed)
		return ""
	}
	return s
}
