// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"

	"github.com/cilium/ebpf"
)

// Port is one that meshproxy listens on.
type Port struct {
	Network string // "tcp" or "udp"
	Port    uint16
	For     string // "outbound", …
}

// DefaultPorts are those of a node without configuration.
func DefaultPorts() []Port {
	return []Port{
		{"tcp", 15001, "outbound"},
		{"tcp", 15006, "inbound plaintext"},
		{"tcp", 15008, "inbound hbone"},
		{"tcp", 15053, "DNS"},
		{"udp", 15053, "DNS"},
		{"tcp", 15020, "metrics"},
		{"tcp", 15021, "readiness"},
	}
}

// Options say what to look at.
type Options struct {
	// CgroupRoot is the directory of the configured cgroup; empty means the
	// hierarchy's root.
	CgroupRoot string
	// BPFFS is where a bpf file system should be; default /sys/fs/bpf.
	BPFFS string
	// NetNSHelper is the socket of the helper that opens network namespaces.
	NetNSHelper string
	// Ports default to DefaultPorts.
	Ports []Port
	// Running says that meshproxy runs on this machine, so that its ports are
	// in use as they should be.
	Running bool
}

// Run makes all checks. It takes some hundred milliseconds. When ctx is done,
// it returns what it has found so far, and the context's error.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.BPFFS == "" {
		o.BPFFS = "/sys/fs/bpf"
	}
	if o.Ports == nil {
		o.Ports = DefaultPorts()
	}
	var r Report
	for _, group := range [][]check{
		kernelChecks(), hostChecks(o), capabilityChecks(o), programChecks(), helperChecks(),
		mapChecks(), linkChecks(), socketChecks(), behaviourChecks(), spliceChecks(), portChecks(o), conflictChecks(o),
	} {
		for _, c := range group {
			if err := ctx.Err(); err != nil {
				return r, err
			}
			r.Findings = append(r.Findings, c.run())
		}
	}
	return r, nil
}

// check is one question and what the answer means.
type check struct {
	name      string
	required  bool
	minKernel string
	// consequence is that of not having it.
	consequence string
	// look returns what it found. The error is one of the three kinds below,
	// or says that looking failed.
	look func() (detail string, err error)
}

// absence says that something is not there, for certain.
type absence struct{ error }

// notice says that something is there and deserves attention.
type notice struct{ error }

func absent(text string) error { return absence{errors.New(text)} }
func noted(text string) error  { return notice{errors.New(text)} }

func (c check) run() Finding {
	detail, err := c.look()
	f := Finding{Name: c.name, Required: c.required, MinKernel: c.minKernel, Detail: detail, Status: StatusOK}
	if err == nil {
		return f
	}
	var (
		missing absence
		strange notice
	)
	switch {
	case errors.As(err, &strange):
		f.Status = StatusWarn
	case errors.As(err, &missing), errors.Is(err, ebpf.ErrNotSupported):
		f.Status = StatusWarn
		if c.required {
			f.Status = StatusFail
		}
	default:
		f.Status = StatusUnknown
	}
	if f.Detail == "" {
		f.Detail = err.Error()
	}
	f.Consequence = c.consequence
	return f
}
