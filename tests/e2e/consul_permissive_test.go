// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
)

// TestConsulPermissive: plaintext from another machine enters a service once Consul's
// entries say so, and as long as no intention denies anybody; the status says which.
func TestConsulPermissive(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	l.startServices()
	a := l.net.Host("a")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	expect := func(what string, enters bool, warning string) {
		t.Helper()
		l.eventually(what, func() error {
			src, err := l.source("b")
			if err != nil {
				return err
			}
			if text := strings.Join(src.Warnings, "\n"); !strings.Contains(text, warning) || warning == "" && strings.Contains(text, "MutualTLSMode") {
				return fmt.Errorf("warnings %q, want %q", text, warning)
			}
			if d := l.dial(a, "nobody", "-address", "10.77.0.2:8080", "-send", "hello"); d.OK != enters {
				return errors.Join(fmt.Errorf("plaintext enters: %t, want %t", d.OK, enters), errors.New(d.Error))
			}
			return nil
		})
	}
	expect("strict", false, "")
	l.server.Write(t, &consulapi.MeshConfigEntry{AllowEnablingPermissiveMutualTLS: true})
	l.server.Write(t, &consulapi.ServiceConfigEntry{Kind: consulapi.ServiceDefaults, Name: "far", MutualTLSMode: consulapi.MutualTLSModePermissive})
	expect("permissive", true, "service far: MutualTLSMode permissive in service-defaults opens every port")
	l.server.Intend(t, "other", "far", consulapi.IntentionActionDeny)
	expect("an intention that denies somebody", false, "service far: MutualTLSMode permissive in service-defaults lets no plaintext in")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	l.server.Intend(t, "other", "far", consulapi.IntentionActionAllow)
	expect("permissive again", true, "opens every port")
	l.server.Delete(t, consulapi.ServiceDefaults, "far")
	expect("strict again", false, "")
}
