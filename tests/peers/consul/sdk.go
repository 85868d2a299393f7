// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// SDK says how a program is run that is in the mesh by Consul's Go SDK, which
// sends no SNI, and offers HTTP/2 for whatever it carries.
type SDK struct {
	// Service is who it is.
	Service string
	// Listen takes the mesh's connections for Application or, with Upstream,
	// plain ones for that service.
	Listen, Application netip.AddrPort
	Upstream            string
	// Token is the management token by default.
	Token string
}

// StartSDK starts the program; it ends with the test.
func (s *Server) StartSDK(t Test, o SDK) *Sidecar {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	p, err := s.LaunchSDK(ctx, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { finish(t, p.process) })
	return p
}

// LaunchSDK is StartSDK for programs that are no tests.
func (s *Server) LaunchSDK(ctx context.Context, o SDK) (*Sidecar, error) {
	program, err := sdkProgram(ctx)
	if err != nil {
		return nil, err
	}
	args := []string{"-service", o.Service, "-listen", o.Listen.String()}
	if o.Upstream != "" {
		args = append(args, "-upstream", o.Upstream)
	} else {
		args = append(args, "-app", o.Application.String())
	}
	p := &Sidecar{host: s.options.Host}
	p.process, err = start(s.options.Host, command{
		name: fmt.Sprintf("sdk-%s-%d", o.Service, sdks.Add(1)), path: program, dir: s.options.Dir,
		args: args, env: s.environment(cmp.Or(o.Token, s.ManagementToken)),
	})
	if err != nil {
		return nil, err
	}
	return p, p.await(ctx, func() error {
		text, err := os.ReadFile(p.Log())
		if err != nil || !strings.Contains(string(text), "ready") {
			return errors.Join(err, errors.New("it is not ready"))
		}
		return nil
	})
}

var sdks atomic.Uint64

// sdkProgram returns the path of the program in build/sdk, which is built once
// for each version of its source.
func sdkProgram(ctx context.Context) (string, error) {
	consul, err := Binary(ctx) // its build has all that this one needs
	if err != nil {
		return "", err
	}
	source, err := findSource()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(source, "sdk", "main.go"))
	if err != nil {
		return "", fmt.Errorf("read source of SDK program: %w", err)
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(filepath.Dir(consul), "sdk-"+hex.EncodeToString(sum[:6]))
	if built(path) {
		return path, nil
	}
	unlock, err := lock(ctx, filepath.Join(filepath.Dir(consul), "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(path) {
		return path, nil
	}
	return path, build(ctx, path, "./sdk")
}
