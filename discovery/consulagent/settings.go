// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
)

// DefaultAddress is where an agent listens unless it is told otherwise.
const DefaultAddress = "127.0.0.1:8500"

// Settings say how to reach the agent.
type Settings struct {
	// Address is a host with a port, http:// or https:// before it or not, or
	// unix:// and the path of a socket; DefaultAddress by default.
	Address string
	// Token is sent with each request. TokenFile wins over it, and is read again
	// when it has changed.
	Token, TokenFile string
	// CAFile, CertFile, KeyFile and ServerName are for https.
	CAFile, CertFile, KeyFile, ServerName string
	// Datacenter, Namespace and Partition are those of the agent if empty. The
	// latter two exist in Consul Enterprise only.
	Datacenter, Namespace, Partition string
}

var errAddress = errors.New("no host with a port such as 127.0.0.1:8500 or https://consul.internal:8501, and no unix:///path of a socket")

// endpoint is an address taken apart.
type endpoint struct {
	scheme string // http or https
	host   string // with the port
	socket string // path; empty: TCP
}

// ParseAddress checks Settings.Address and says whether TLS is used.
func ParseAddress(address string) (tls bool, err error) {
	e, err := parseAddress(address)
	return e.scheme == schemeHTTPS, err
}

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
)

func parseAddress(address string) (endpoint, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return endpoint{}, errAddress
		}
		return endpoint{scheme: schemeHTTP, host: "agent", socket: path}, nil
	}
	if !strings.Contains(address, "://") {
		address = schemeHTTP + "://" + address
	}
	u, err := url.Parse(address)
	switch {
	case err != nil, u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS, u.Hostname() == "", u.Port() == "":
		return endpoint{}, errAddress
	case strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.User != nil:
		return endpoint{}, errAddress
	}
	return endpoint{scheme: u.Scheme, host: u.Host}, nil
}

// Validate reports what is wrong with the settings together.
func (s Settings) Validate() error {
	e, err := parseAddress(s.Address)
	switch {
	case err != nil:
		return fmt.Errorf("address %q: %w", s.Address, err)
	case (s.CertFile == "") != (s.KeyFile == ""):
		return errors.New("a certificate and its key go together")
	case e.scheme == schemeHTTP && s.CAFile+s.CertFile+s.ServerName != "":
		return fmt.Errorf("TLS is set up, and the address %s is not https://", s.Address)
	}
	return nil
}
