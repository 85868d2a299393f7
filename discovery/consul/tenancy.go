// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"sync/atomic"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// tenancy is the namespace that the agent lists its services of: the configured
// one, else that of the token, which their registrations tell.
type tenancy struct {
	configured string
	learned    atomic.Pointer[string]
}

// learn takes the namespace of what the agent lists. The community edition names
// none.
func (t *tenancy) learn(all map[string]*agentService) {
	for _, s := range all {
		if t.configured == "" && s.Namespace != "" {
			t.learned.Store(&s.Namespace)
			return
		}
	}
}

func (t *tenancy) own() string {
	if p := t.learned.Load(); p != nil {
		return *p
	}
	return cmp.Or(t.configured, standard)
}

// within is a name that may lack its namespace.
func (t *tenancy) within(n mesh.Name) mesh.Name {
	n.Namespace = cmp.Or(n.Namespace, t.own())
	return n
}

// foreign reports whether a name is in a namespace whose services the agent is not
// asked for.
func (t *tenancy) foreign(n mesh.Name) bool { return t.within(n).Namespace != t.own() }

// namespace is the one to name in a question or a registration.
func (t *tenancy) namespace(of string) string { return tenantOf(of, t.configured, t.own()) }

// tenantOf is the namespace or partition to ask for: that of what is asked about,
// else the configured one. The own one is named where configuration names some,
// since the client does so, too; without, the token says it, and the community
// edition refuses to hear of any.
func tenantOf(of, configured, own string) string {
	if configured == "" && of == own {
		return ""
	}
	return cmp.Or(of, configured)
}
