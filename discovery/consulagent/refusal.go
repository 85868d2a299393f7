// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Refused says whether the agent refuses the token or what it asks for, rather
// than being unable to answer.
func Refused(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && (status.Code == http.StatusForbidden || strings.Contains(status.Body, "ACL not found"))
}

// RateLimited says whether the agent or its servers want to be asked later: by
// their limits on requests and connections, or by the CA's on signing.
func RateLimited(err error) bool {
	var status api.StatusError
	if !errors.As(err, &status) {
		return false
	}
	body := strings.ToLower(status.Body)
	return status.Code == http.StatusTooManyRequests ||
		strings.Contains(body, "rate limit") || strings.Contains(body, "too many requests")
}

// lacking is from acl.PermissionDeniedError.Error of Consul, which names an
// Enterprise resource as partition/namespace/name.
var lacking = regexp.MustCompile(`lacks permission '([a-z]+):([a-z]+)'(?: on "([^"]*)")?`)

// Rule is the ACL rule that the token would need, such as
// `service "web" { policy = "write" }`; empty when err doesn't say so.
func Rule(err error) string {
	if err == nil {
		return ""
	}
	m := lacking.FindStringSubmatch(err.Error())
	if m == nil {
		return ""
	}
	resource, access, name := m[1], m[2], m[3][strings.LastIndexByte(m[3], '/')+1:]
	switch {
	case resource == "intention":
		return fmt.Sprintf(`service %q { intentions = %q }`, name, access)
	case name == "":
		return fmt.Sprintf(`%s = %q`, resource, access)
	default:
		return fmt.Sprintf(`%s %q { policy = %q }`, resource, name, access)
	}
}
