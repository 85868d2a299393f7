// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"slices"
	"testing"
)

func TestNewest(t *testing.T) {
	const list = `linux-image-6.12.94+deb13-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.115+deb13-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.115+deb13.1-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-7.2.9+deb13-cloud-amd64 - Linux 7.2.9 for x86-64 cloud
linux-binary-7.2.12+deb13-cloud-amd64 - Linux 7.2.12 for x86-64 cloud (kernel image)
linux-image-7.2.12+deb13-cloud-amd64 - Linux 7.2.12 for x86-64 cloud
linux-modules-7.2.12+deb13-cloud-amd64 - Linux 7.2.12 for x86-64 cloud (modules)
linux-image-7.3.4+deb13-cloud-amd64 - Linux 7.3.4 for x86-64 cloud
`
	for version, want := range map[string][]string{
		"6.1":  {"linux-image-6.1.0-56-cloud-amd64"},
		"6.12": {"linux-image-6.12.115+deb13.1-cloud-amd64"},
		"7.2": {
			"linux-binary-7.2.12+deb13-cloud-amd64", "linux-image-7.2.12+deb13-cloud-amd64",
			"linux-modules-7.2.12+deb13-cloud-amd64",
		},
	} {
		if got, err := newest(version, list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
	}
	if got, err := newest("5.10", list); err == nil {
		t.Errorf("5.10 was found: %q", got)
	}
}
