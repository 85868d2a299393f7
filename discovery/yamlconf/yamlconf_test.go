// SPDX-License-Identifier: Apache-2.0

package yamlconf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// decodeSample is a decoder as a configuration would have it.
func decodeSample(d *Document) {
	m := d.Root().Map()
	defer m.Done()
	m.Required("name").Label()
	m.Get("port").Port()
	m.Get("timeout").Duration(time.Second, time.Minute)
	m.Get("mode").OneOf("strict", "off")
	m.Get("on").Bool()
	m.Get("text").Text()
	m.Get("user").Scalar()
	m.Get("address").Addr()
	m.Get("listen").AddrPort()
	m.Get("cidr").Prefix()
	m.Get("identity").Identity()
	m.Get("trustDomain").TrustDomain()
	m.Get("hostname").Hostname()
	m.Get("path").AbsolutePath()
	m.Get("items").List(func(v Value) {
		m := v.Map()
		m.Get("port").Port()
		m.Done()
	})
	m.Ignore("theirs")
}

func TestProblems(t *testing.T) {
	tests := []struct{ name, yaml, want string }{
		{"good", "name: web\nport: 80\ntimeout: 5s\nmode: off\non: true\ntext: x\nuser: 1000\naddress: 10.0.0.1\nlisten: '[::1]:80'\ncidr: 10.0.0.0/8\nidentity: spiffe://x/y\ntrustDomain: x.org\nhostname: a.b\npath: /x/y\nitems: [{port: 1}]\ntheirs: {x: [y]}\n", ""},
		{"quoted off is a word too", "name: a\nmode: 'off'", ""},
		{"empty", "", "f.yaml: the file is empty"},
		{"only a comment", "# nothing\n", "f.yaml: the file is empty"},
		{"null", "~", "f.yaml: the file is empty"},
		{"two documents", "name: a\n---\nname: b\n", "f.yaml:2:1: found a second YAML document; allowed: one document in a file"},
		{"syntax", "name: [a\n", "f.yaml:1:1: not YAML: did not find expected ',' or ']'"},
		{"tab", "name: a\nitems:\n\t- port: 1\n", "f.yaml:3:1: not YAML: found character that cannot start any token"},
		{"not a mapping", "[a]", "f.yaml:1:1: found a list; allowed: a mapping"},
		{"missing", "port: 80", `f.yaml:1:1: "name" is missing`},
		{"no value", "name:\n", "f.yaml:1:1: name: the key has no value; allowed: a value, or no key"},
		{"unknown with hint", "name: a\nadress: 10.0.0.1", `f.yaml:2:1: unknown key "adress" (did you mean "address"?); allowed: name, port, timeout, mode, on, text, user, address, listen, cidr, identity, trustDomain, hostname, path, items`},
		{"unknown below", "name: a\nitems: [{port: 1, zzzzz: 2}]", `f.yaml:2:19: items[0]: unknown key "zzzzz"; allowed: port`},
		{"duplicate", "name: a\nname: b", "f.yaml:2:1: name: the key is there twice, first in line 1"},
		{"key no scalar", "name: a\n{x: y}: z", "f.yaml:2:1: found a mapping as a key; allowed: a string"},
		{"port range", "name: a\nitems:\n- port: 1\n- port: 70000", "f.yaml:4:9: items[1].port: found the number 70000; allowed: a number from 1 to 65535"},
		{"port huge", "name: a\nport: 99999999999999999999", "f.yaml:2:7: port: found the number 99999999999999999999; allowed: a number from 1 to 65535"},
		{"port zero", "name: a\nport: 0", "f.yaml:2:7: port: found the number 0; allowed: a number from 1 to 65535"},
		{"port quoted", "name: a\nport: '80'", `f.yaml:2:7: port: found "80"; allowed: a number from 1 to 65535`},
		{"port fraction", "name: a\nport: 8.5", "f.yaml:2:7: port: found the number 8.5; allowed: a number from 1 to 65535"},
		{"port list", "name: a\nport: [80]", "f.yaml:2:7: port: found a list; allowed: a number from 1 to 65535"},
		{"list wanted", "name: a\nitems: {port: 80}", "f.yaml:2:8: items: found a mapping; allowed: a list"},
		{"list of wrong", "name: a\nitems: [80]", "f.yaml:2:9: items[0]: found the number 80; allowed: a mapping"},
		{"duration no unit", "name: a\ntimeout: 5", "f.yaml:2:10: timeout: found the number 5; allowed: a duration with a unit, such as 5s, from 1s to 1m0s"},
		{"duration range", "name: a\ntimeout: 5h", `f.yaml:2:10: timeout: found "5h"; allowed: a duration with a unit, such as 5s, from 1s to 1m0s`},
		{"word", "name: a\nmode: lax", `f.yaml:2:7: mode: found "lax"; allowed: strict, off`},
		{"bool", "name: a\non: 'yes'", `f.yaml:2:5: on: found "yes"; allowed: true or false`},
		{"text number", "name: a\ntext: 12", "f.yaml:2:7: text: found the number 12; allowed: a string (quote it if it looks like a number)"},
		{"text empty", "name: a\ntext: ' '", `f.yaml:2:7: text: found " "; allowed: a string that is not empty`},
		{"name upper", "name: Web", `f.yaml:1:7: name: found "Web"; allowed: at most 63 of a-z, 0-9 and -, with - neither first nor last`},
		{"zone", "name: a\naddress: fe80::1%eth0", `f.yaml:2:10: address: found "fe80::1%eth0"; allowed: an IPv4 or IPv6 address without a zone`},
		{"listen no port", "name: a\nlisten: 127.0.0.1", `f.yaml:2:9: listen: found "127.0.0.1"; allowed: an address with a port, such as 127.0.0.1:80 or [::1]:80`},
		{"listen port 0", "name: a\nlisten: 127.0.0.1:0", `f.yaml:2:9: listen: found "127.0.0.1:0"; allowed: an address with a port, such as 127.0.0.1:80 or [::1]:80`},
		{"host bits", "name: a\ncidr: 10.0.0.1/8", `f.yaml:2:7: cidr: found "10.0.0.1/8"; allowed: a network address; did you mean 10.0.0.0/8 or 10.0.0.1/32?`},
		{"identity", "name: a\nidentity: web", `f.yaml:2:11: identity: found "web"; allowed: a SPIFFE ID such as spiffe://example.org/ns/default/sa/web`},
		{"identity no path", "name: a\nidentity: spiffe://x", `f.yaml:2:11: identity: found "spiffe://x"; allowed: a SPIFFE ID such as spiffe://example.org/ns/default/sa/web`},
		{"trust domain", "name: a\ntrustDomain: spiffe://x", `f.yaml:2:14: trustDomain: found "spiffe://x"; allowed: the name of a trust domain, such as example.org`},
		{"hostname dot", "name: a\nhostname: a.b.", `f.yaml:2:11: hostname: found "a.b."; allowed: a DNS name in lower case, without a trailing dot`},
		{"hostname address", "name: a\nhostname: 10.0.0.1", `f.yaml:2:11: hostname: found "10.0.0.1"; allowed: a DNS name in lower case, without a trailing dot`},
		{"path", "name: a\npath: x/../y", `f.yaml:2:7: path: found "x/../y"; allowed: an absolute path without "." and ".."`},
		{"all at once", "port: x\nname: B\nzzz: 1", "f.yaml:1:7: port: found \"x\"; allowed: a number from 1 to 65535\n" +
			"f.yaml:2:7: name: found \"B\"; allowed: at most 63 of a-z, 0-9 and -, with - neither first nor last\n" +
			"f.yaml:3:1: unknown key \"zzz\"; allowed: "},
		{"anchor and merge", "theirs: &d {port: 80, timeout: 5s}\nname: a\n<<: *d\nport: 90\n", ""},
		{"merged is checked too", "theirs: &d {prot: 80}\nname: a\n<<: [*d]\n", `f.yaml:1:13: unknown key "prot" (did you mean "port"?); allowed:`},
		{"merge of no mapping", "name: a\n<<: 3", "f.yaml:2:5: <<: found the number 3; allowed: a mapping or a list of mappings"},
		{"merge without end", "name: a\ntheirs: &x {<<: [*x, *x]}\n<<: *x", "f.yaml:2:18: <<: found more than 100 merged mappings"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Parse("f.yaml", []byte(tt.yaml))
			decodeSample(d)
			err := d.Err()
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Fatalf("got  %v\nwant %v", err, tt.want)
			}
			if !errors.Is(err, ErrInvalid) {
				t.Error("not ErrInvalid")
			}
			var all Problems
			if !errors.As(err, &all) || all[0].File != "f.yaml" {
				t.Errorf("problems %+v", all)
			}
		})
	}
}

func TestMergedValues(t *testing.T) {
	m := Parse("f", []byte("base: &b {a: 1, b: 2}\nmore: &m {b: 3, c: 4}\nown: {<<: [*b, *m], a: 9}")).Root().Map().Get("own").Map()
	for key, want := range map[string]int64{"a": 9, "b": 2, "c": 4} {
		if got := m.Get(key).Int(0, 100); got != want {
			t.Errorf("%s = %d, want %d", key, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	m := Parse("f", []byte("a: ::ffff:10.0.0.1\nap: '[::ffff:127.0.0.1]:80'\np: 10.0.0.1\ni: 0x50\nu: 1000")).Root().Map()
	if a := m.Get("a").Addr(); a != netip.MustParseAddr("10.0.0.1") {
		t.Error(a)
	}
	if a := m.Get("ap").AddrPort(); a != netip.MustParseAddrPort("127.0.0.1:80") {
		t.Error(a)
	}
	if p := m.Get("p").Prefix(); p != netip.MustParsePrefix("10.0.0.1/32") {
		t.Error(p)
	}
	if i := m.Get("i").Int(0, 100); i != 80 {
		t.Error(i)
	}
	if u := m.Get("u").Scalar(); u != "1000" {
		t.Error(u)
	}
}

func TestJoin(t *testing.T) {
	if err := Join("f", nil, nil); err != nil {
		t.Error(err)
	}
	a, b := Parse("a", nil), Parse("b", []byte("x: 1"))
	b.Root().Map().Done()
	err := Join("b", b.Err(), a.Err(), errors.New("disk on fire"))
	want := "b: disk on fire\nb:1:1: unknown key \"x\"\na: the file is empty"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("name: a\nitems: [{port: 1}]")
	f.Add("a: &a [*a]\nitems: *a\n<<: *a")
	f.Add("? [x]\n: y\n--- \n...")
	f.Fuzz(func(t *testing.T, s string) {
		d := Parse("f", []byte(s))
		decodeSample(d)
		if err := d.Err(); err != nil && !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
}
