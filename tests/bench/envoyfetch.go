// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	release "github.com/meshproxy/meshproxy/tests/peers/envoy"
)

// fetchEnvoy returns the path of the Envoy binary that the tests use too.
func fetchEnvoy(ctx context.Context) (string, error) { return release.Fetch(ctx) }
