// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/consul"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/files"
)

// provider is an identity provider that runs and can be looked at.
type provider interface {
	identity.Provider
	Run(context.Context) error
	Summary() identity.Summary
}

func (n *Node) startIdentity(ctx context.Context) (err error) {
	if n.provider, err = openProvider(n.settingsFile(), n); err != nil {
		return err
	}
	n.followLeaves(ctx)
	n.tasks.Go(func() {
		if err := n.provider.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.log.Error("identity provider ended", "error", err)
		}
	})
	return nil
}

// keepLeaves tells a provider that has to be asked in time whose leaves the
// node will show.
func (n *Node) keepLeaves(v *view) {
	if k, ok := n.provider.(interface{ Keep([]spiffeid.ID) }); ok {
		k.Keep(v.names.Identities())
	}
}

// trustDomain is that of the configuration, or the one that the provider has
// learned; zero while neither says.
func (n *Node) trustDomain() spiffeid.TrustDomain {
	if learns, ok := n.provider.(interface{ TrustDomain() spiffeid.TrustDomain }); ok {
		return learns.TrustDomain()
	}
	return n.settingsFile().Node.TrustDomain
}

// CADir is the directory of the embedded CA.
func CADir(c *config.Config) string {
	if c.Identity.Embedded.Dir != "" {
		return c.Identity.Embedded.Dir
	}
	return filepath.Join(c.StateDir, "ca")
}

func openProvider(c *config.Config, n *Node) (provider, error) {
	switch c.Identity.Provider {
	case config.ProviderEmbedded:
		o := embedded.Options{Dir: CADir(c), Logger: n.log}
		if c.Origin("identity.embedded.leafTTL") != config.OriginDefault {
			o.LeafTTL = c.Identity.Embedded.LeafTTL // else the CA has a say, too
		}
		p, err := embedded.Open(o)
		if err != nil {
			return nil, err
		}
		if td := p.TrustDomain(); td != c.Node.TrustDomain {
			return nil, fmt.Errorf("the CA in %s is for trust domain %s, node.trustDomain is %s", CADir(c), td, c.Node.TrustDomain)
		}
		return p, nil
	case config.ProviderFiles:
		return files.Open(filesOptions(c, n))
	case config.ProviderConsul:
		agent, err := consulagent.New(c.Consul, consul.Connections)
		if err != nil {
			return nil, err
		}
		return consul.Open(consul.Options{Agent: agent, TrustDomain: c.Node.TrustDomain, Logger: n.log}), nil
	default:
		return nil, fmt.Errorf("identity.provider %q is unknown", c.Identity.Provider)
	}
}

func filesOptions(c *config.Config, n *Node) files.Options {
	o := files.Options{Dir: c.Identity.Files.Dir, Logger: n.log}
	for _, w := range c.Identity.Files.Workloads {
		o.Workloads = append(o.Workloads, files.Workload{Identity: w.Identity, CertFile: w.Cert, KeyFile: w.Key})
	}
	if c.Identity.Files.Bundle != "" {
		o.Bundles = map[spiffeid.TrustDomain]string{c.Node.TrustDomain: c.Identity.Files.Bundle}
	}
	return o
}
