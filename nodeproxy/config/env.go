// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// The variables that the commands read and no configuration has.
const (
	// EnvFile names the configuration file, as --config does.
	EnvFile = envPrefix + "CONFIG"
	// EnvSocket names the admin socket, as --socket does.
	EnvSocket = envPrefix + "SOCKET"

	envPrefix = "MESHPROXY_"
)

// envName is the variable that sets a key: node.trustDomain becomes
// MESHPROXY_NODE_TRUST_DOMAIN.
func envName(name string) string {
	var b strings.Builder
	b.WriteString(envPrefix)
	lowerBefore := false
	for _, c := range name {
		isUpper := c >= 'A' && c <= 'Z'
		if isUpper && lowerBefore {
			b.WriteByte('_')
		}
		lowerBefore = !isUpper && c != '.'
		if c == '.' {
			c = '_'
		}
		b.WriteRune(c)
	}
	return strings.ToUpper(b.String())
}

// readEnv reads the variables, "NAME=value" each. An unknown one is an error,
// lest a misspelt one be taken for one in force.
func readEnv(env []string) (layer, error) {
	var problems yamlconf.Problems
	l := make(layer)
	keys := make(map[string]*key)
	var names []string
	for i := range table {
		// Lists of records have no good form in a variable.
		if table[i].field(new(Config)).fields == nil {
			name := envName(table[i].name)
			keys[name] = &table[i]
			names = append(names, name)
		}
	}
	for _, variable := range env {
		name, text, _ := strings.Cut(variable, "=")
		switch row := keys[name]; {
		case row != nil && text == "": // as good as unset
		case row != nil:
			l[row.name] = split(row, text, "$"+name)
		case !strings.HasPrefix(name, envPrefix), name == EnvFile, name == EnvSocket, foreign(name):
		default:
			problems = append(problems, &yamlconf.Problem{
				File: "$" + name, Found: "unknown variable",
				Allowed: "the variables of config show --defaults, such as " + names[nearest(name, names)],
			})
		}
	}
	return l, joined(problems)
}

// nearest is the index of the name that begins most like s.
func nearest(s string, names []string) int {
	best, most := 0, 0
	for i, name := range names {
		n := 0
		for n < min(len(s), len(name)) && s[n] == name[n] {
			n++
		}
		if n > most {
			best, most = i, n
		}
	}
	return best
}

// foreign reports the variables that Kubernetes and Docker set in containers
// for a service that is called meshproxy.
func foreign(name string) bool {
	rest := strings.TrimPrefix(name, envPrefix)
	return rest == "PORT" || strings.HasPrefix(rest, "PORT_") ||
		rest == "SERVICE_HOST" || rest == "SERVICE_PORT" || strings.HasPrefix(rest, "SERVICE_PORT_")
}

// split makes items of a text; those of lists are separated by commas.
func split(row *key, text, origin string) []raw {
	if !row.field(new(Config)).list {
		return []raw{{text: text, origin: origin}}
	}
	items := []raw{}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, raw{text: item, origin: origin})
		}
	}
	return items
}
