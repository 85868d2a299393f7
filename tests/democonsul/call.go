// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// call is a flow that goes on.
type call struct {
	flow
	process *testnet.Process
	next    int // line of its reports

	last            workload.Stats
	answers, errors int
	problem, server string
}

// read takes in the reports since the last time.
func (c *call) read() {
	var lines []string
	lines, c.next = c.process.Stdout().Lines(c.next)
	for _, line := range lines {
		var s workload.Stats
		if json.Unmarshal([]byte(line), &s) != nil || s.Event != workload.EventStats {
			continue
		}
		c.last = s
		c.answers += s.Requests
		c.errors += s.Errors
		if s.Error != "" {
			c.problem = s.Error
		}
		for name := range s.Servers {
			c.server = name
		}
	}
}

// working reports whether the last report has answers and no errors.
func (c *call) working() bool { return c.last.Requests > 0 && c.last.Errors == 0 }

func (c *call) state() string {
	return fmt.Sprintf("%d answers, %d errors %s", c.last.Requests, c.last.Errors, c.last.Error)
}
