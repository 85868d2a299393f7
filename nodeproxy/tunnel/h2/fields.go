// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

type pseudo uint8

const (
	pseudoMethod pseudo = 1 << iota
	pseudoAuthority
	pseudoScheme
	pseudoPath
	pseudoStatus
)

// take keeps a field, or finds the list malformed: RFC 9113 sections 8.2 and 8.3.
func (b *headerBlock) take(f hpack.HeaderField) {
	if strings.HasPrefix(f.Name, ":") {
		if b.regular || !b.takePseudo(f) {
			b.fault = faultMalformed
		}
		return
	}
	b.regular = true
	if !validName(f.Name) || !validValue(f.Value) || connectionField(f) {
		b.fault = faultMalformed
		return
	}
	b.fields = append(b.fields, f)
}

func (b *headerBlock) takePseudo(f hpack.HeaderField) bool {
	var bit pseudo
	var place *string
	switch f.Name {
	case ":method":
		bit, place = pseudoMethod, &b.method
	case ":authority":
		bit, place = pseudoAuthority, &b.authority
	case ":scheme":
		bit, place = pseudoScheme, &b.scheme
	case ":path":
		bit, place = pseudoPath, &b.path
	case ":status":
		bit, place = pseudoStatus, &b.status
	default:
		return false
	}
	if b.client != (bit == pseudoStatus) || b.pseudo&bit != 0 || !validValue(f.Value) {
		return false
	}
	b.pseudo |= bit
	*place = f.Value
	return true
}

// verdict says what a request deserves: an error code for the stream, a status to
// refuse it with, or neither.
func (b *headerBlock) verdict() (status int, code ErrCode) {
	const connect = pseudoMethod | pseudoAuthority
	const other = pseudoMethod | pseudoScheme | pseudoPath
	switch {
	case b.fault == faultMalformed:
		return 0, ProtocolError
	case b.fault == faultTooLarge:
		return 431, NoError // RFC 6585 section 5
	case b.method == "CONNECT" && b.pseudo == connect && b.authority != "":
		return 0, NoError
	case b.method == "CONNECT" || b.pseudo&other != other || b.method == "" || b.path == "":
		return 0, ProtocolError // RFC 9113 sections 8.5 and 8.3.1
	}
	return 400, NoError // well-formed, but a tunnel is for CONNECT
}

// statusCode is the three digits of :status, or 0.
func (b *headerBlock) statusCode() int {
	if len(b.status) != 3 {
		return 0
	}
	n := 0
	for _, d := range []byte(b.status) {
		if d < '0' || d > '9' {
			return 0
		}
		n = n*10 + int(d-'0')
	}
	return n
}

// validName: a token without upper-case letters, RFC 9113 section 8.2.1.
func validName(s string) bool {
	for i := range len(s) {
		if b := s[i]; !httpguts.IsTokenRune(rune(b)) || 'A' <= b && b <= 'Z' {
			return false
		}
	}
	return s != ""
}

// validValue: no NUL, CR or LF, and no space around it, RFC 9113 section 8.2.1.
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if strings.ContainsAny(s, "\x00\r\n") {
		return false
	}
	space := func(b byte) bool { return b == ' ' || b == '\t' }
	return !space(s[0]) && !space(s[len(s)-1])
}

// connectionField: fields that are about a connection of HTTP/1.1 and must not
// come here, RFC 9113 section 8.2.2.
func connectionField(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	case "te":
		return f.Value != "trailers"
	}
	return false
}
