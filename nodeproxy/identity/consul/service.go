// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// service is what an identity of Consul's stands for.
type service struct {
	partition, namespace, datacenter, name string
}

const standard = "default"

// parseService reads /ns/<namespace>/dc/<datacenter>/svc/<service>, with
// /ap/<partition> before it unless that is the default
// (agent/connect/uri_service.go of Consul).
func parseService(id spiffeid.ID) (service, error) {
	s := service{partition: standard}
	rest := strings.Split(strings.TrimPrefix(id.Path(), "/"), "/")
	if len(rest) == 8 && rest[0] == "ap" {
		s.partition, rest = rest[1], rest[2:]
	}
	if len(rest) != 6 || rest[0] != "ns" || rest[2] != "dc" || rest[4] != "svc" {
		return service{}, fmt.Errorf("%s is not the identity of a Consul service: want spiffe://<cluster>.consul/ns/<namespace>/dc/<datacenter>/svc/<service>", id)
	}
	s.namespace, s.datacenter, s.name = rest[1], rest[3], rest[5]
	return s, nil
}
