// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"
)

// TestBlocksDecode with x/net's decoder, to the fields and the size they claim.
func TestBlocksDecode(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 254, 255, 256, 16_000, 40_000} {
		b, err := ConnectBlock("web:80")
		if err != nil {
			t.Fatal(err)
		}
		value := strings.Repeat("v", n)
		if err := b.Add("baggage", value); err != nil {
			t.Fatal(err)
		}
		got, err := hpack.NewDecoder(0, nil).DecodeFull(b.enc)
		if err != nil {
			t.Fatal(err)
		}
		want := []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "web:80"}, {Name: "baggage", Value: value}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d (-want +got):\n%.200s", n, diff)
		}
		size := uint32(0)
		for _, f := range got {
			size += f.Size()
		}
		if size != b.size {
			t.Errorf("%d: size %d, want %d", n, b.size, size)
		}
	}
}

func TestStatusDecodes(t *testing.T) {
	for status, text := range map[int]string{200: "200", 400: "400", 401: "401", 431: "431", 503: "503"} {
		got, err := hpack.NewDecoder(0, nil).DecodeFull(appendStatus(nil, status))
		if err != nil || len(got) != 1 || got[0].Name != ":status" || got[0].Value != text {
			t.Errorf("%d: %v, %v", status, got, err)
		}
	}
}

func TestBlockRefusesWhatMustNotBeSent(t *testing.T) {
	b := &Block{}
	for _, f := range [][2]string{
		{"", "x"},
		{"Upper", "x"},
		{"sp ace", "x"},
		{":path", "/"},
		{"x", "a\r\nb"},
		{"x", "a\x00"},
		{"x", " a"},
		{"x", "a\t"},
	} {
		if err := b.Add(f[0], f[1]); err != ErrField {
			t.Errorf("%q: %v", f, err)
		}
	}
	if len(b.enc) != 0 {
		t.Error("something was added")
	}
	for _, a := range []string{"", "a\nb:1"} {
		if _, err := ConnectBlock(a); err != ErrField {
			t.Errorf("authority %q: %v", a, err)
		}
	}
}
