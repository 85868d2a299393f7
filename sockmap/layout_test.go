// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"reflect"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/meshproxy/meshproxy/bpf"
)

// TestLayout compares the Go types with what the compiler made of the C ones:
// every field at the same offset and of the same size, and nothing hidden
// between them, because keys are compared byte by byte.
func TestLayout(t *testing.T) {
	spec, err := bpf.LoadCapture()
	if err != nil {
		t.Fatal(err)
	}
	for c, goType := range map[string]any{
		"address":         bpf.CaptureAddress{},
		"node":            bpf.CaptureNode{},
		"workload":        bpf.CaptureWorkload{},
		"destination_key": bpf.CaptureDestinationKey{},
		"destination":     bpf.CaptureDestination{},
		"port_exclusion":  bpf.CapturePortExclusion{},
		"cidr_exclusion":  bpf.CaptureCidrExclusion{},
		"flow_key":        bpf.CaptureFlowKey{},
		"flow":            bpf.CaptureFlow{},
		"socket":          bpf.CaptureSocket{},
		"port_key":        bpf.CapturePortKey{},
		"port":            bpf.CapturePort{},
		"port_filter":     bpf.CapturePortFilter{},
		"rule_key":        bpf.CaptureRuleKey{},
		"rule":            bpf.CaptureRule{},
		"name":            bpf.CaptureName{},
		"unit_key":        bpf.CaptureUnitKey{},
		"rejection_key":   bpf.CaptureRejectionKey{},
		"connection_key":  bpf.CaptureConnectionKey{},
		"locals":          bpf.CaptureLocals{},
		"local":           bpf.CaptureLocal{},
		"access_key":      bpf.CaptureAccessKey{},
		"direct":          bpf.CaptureDirect{},
		"splice":          bpf.CaptureSplice{},
		"splice_key":      bpf.CaptureSpliceKey{},
		"hop":             bpf.CaptureHop{},
		"hop_end":         bpf.CaptureHopEnd{},
		"hop_query":       bpf.CaptureHopQuery{},
		"hop_traffic":     bpf.CaptureHopTraffic{},
		"traffic":         bpf.CaptureTraffic{},
		"traffic_key":     bpf.CaptureTrafficKey{},
		"counters":        bpf.CaptureCounters{},
		"event":           bpf.CaptureEvent{},
	} {
		t.Run(c, func(t *testing.T) {
			var s *btf.Struct
			if err := spec.Types.TypeByName(c, &s); err != nil {
				t.Fatal(err)
			}
			g := reflect.TypeOf(goType)
			if uintptr(s.Size) != g.Size() {
				t.Errorf("%d bytes in C, %d in Go", s.Size, g.Size())
			}
			var fields []reflect.StructField
			for i := range g.NumField() {
				if f := g.Field(i); f.Name != "_" {
					fields = append(fields, f)
				}
			}
			if len(fields) != len(s.Members) {
				t.Fatalf("%d fields in C, %d in Go", len(s.Members), len(fields))
			}
			end := uintptr(0)
			for i, m := range s.Members {
				size, err := btf.Sizeof(m.Type)
				if err != nil {
					t.Fatal(err)
				}
				f := fields[i]
				if uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
					t.Errorf("%s: %d bytes at %d in C, %d at %d in Go", m.Name, size, m.Offset.Bytes(), f.Type.Size(), f.Offset)
				}
				if f.Offset != end {
					t.Errorf("%s: padding before it", m.Name)
				}
				end = f.Offset + f.Type.Size()
			}
			if end != g.Size() {
				t.Error("padding at the end")
			}
		})
	}
}

// TestMapTypes: the sizes that user space reads and writes are the maps' own.
func TestMapTypes(t *testing.T) {
	spec, err := bpf.LoadCapture()
	if err != nil {
		t.Fatal(err)
	}
	inbound, err := bpf.LoadInbound()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range inbound.Maps {
		if name == constantsMap || name == formerFlowsMap {
			continue
		}
		shared := spec.Maps[name]
		if shared == nil || shared.KeySize != m.KeySize || shared.ValueSize != m.ValueSize || shared.Type != m.Type {
			t.Errorf("%s differs between the objects", name)
		}
	}
	for _, h := range hooks {
		if spec.Programs[h.program] == nil {
			t.Errorf("%s: no program %s", h.name, h.program)
		}
	}
	if len(spec.Programs) != len(hooks) {
		t.Errorf("%d programs, %d hooks", len(spec.Programs), len(hooks))
	}
}
