package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestDecode(t *testing.T) {
	const limit = 64
	tests := []struct {
		name, in string
		want     error
	}{
		{"spec", `{"spec":"8080:80"}`, nil},
		{"white space around", " \n{\"spec\":\"8080:80\"}\r\n\t", nil},
		{"unknown field", `{"spec":"8080:80","later":[1]}`, nil},
		{"exactly the limit", `{"spec":"8080:80"}` + strings.Repeat(" ", limit-18), nil},
		{"one over the limit", `{"spec":"8080:80"}` + strings.Repeat(" ", limit-17), ErrTooLong},
		{"empty", "", ErrMalformed},
		{"null", " null ", ErrMalformed},
		{"two values", `{"spec":"8080:80"}{}`, ErrMalformed},
		{"garbage behind", `{"spec":"8080:80"}x`, ErrMalformed},
		{"cut off", `{"spec":"8080:80"`, ErrMalformed},
		{"wrong type", `{"spec":8080}`, ErrMalformed},
		{"array", `["8080:80"]`, ErrMalformed},
		{"nesting", strings.Repeat("[", limit), ErrMalformed},
	}
	for _, tc := range tests {
		var got AddPorts
		if err := Decode(strings.NewReader(tc.in), limit, &got); !errors.Is(err, tc.want) {
			t.Errorf("%s: Decode = %v, want %v", tc.name, err, tc.want)
		} else if err == nil && got.Spec != "8080:80" {
			t.Errorf("%s: decoded %+v", tc.name, got)
		}
	}
	broken := errors.New("broken")
	if err := Decode(iotest.ErrReader(broken), limit, new(AddPorts)); !errors.Is(err, broken) {
		t.Errorf("Decode of a broken body = %v, want %v", err, broken)
	}
}

// TestDecodeNesting: a body within its limit cannot exhaust the stack.
func TestDecodeNesting(t *testing.T) {
	deep := `{"specs":` + strings.Repeat("[", MaxAddPorts-16)
	if err := Decode(strings.NewReader(deep), MaxAddPorts, new(AddPorts)); !errors.Is(err, ErrMalformed) {
		t.Errorf("Decode = %v, want ErrMalformed", err)
	}
}

func TestAddPortsAll(t *testing.T) {
	many := make([]string, MaxSpecs+1)
	for _, tc := range []struct {
		in   AddPorts
		want int // specs, -1 for an error
	}{
		{AddPorts{Spec: "80"}, 1},
		{AddPorts{Specs: []string{"80", "81"}}, 2},
		{AddPorts{Specs: many[:MaxSpecs]}, MaxSpecs},
		{AddPorts{Specs: many}, -1},
		{AddPorts{}, -1},
		{AddPorts{Spec: "80", Specs: []string{"81"}}, -1},
	} {
		got, err := tc.in.All()
		if tc.want < 0 && !errors.Is(err, ErrMalformed) {
			t.Errorf("All of %d specs: %v, want ErrMalformed", len(tc.in.Specs), err)
		}
		if tc.want >= 0 && (err != nil || len(got) != tc.want) {
			t.Errorf("All = %d specs, %v; want %d", len(got), err, tc.want)
		}
	}
}

// TestPortRoundTrip: no field is lost between server and client.
func TestPortRoundTrip(t *testing.T) {
	for _, want := range []Port{
		{ID: 1, Spec: "8080:80/tcp", Proto: "tcp", Count: 1, ContainerPort: 80,
			Bound: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("[::1]:8080")}},
		{ID: 2, Proto: "udp6", Count: 10, Bound: []netip.AddrPort{}, ContainerAddr: netip.IPv6Loopback(), ContainerPort: 53, Auto: true, Proxy: 2},
		{ID: 3, Proto: "tcp", Count: 1, Bound: []netip.AddrPort{}, HostPath: "/run/h", ContainerPath: "/run/c", Reverse: true},
	} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Port
		if err := Decode(strings.NewReader(string(b)), MaxAddPorts, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("port %d changed on the way:\n%s", want.ID, diff)
		}
	}
}

// FuzzDecode holds that what is accepted is one JSON value within the limit.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"spec":"80"}`, `{"specs":["80","81"]}`, `null`, `{}{}`, `[[[`, "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		const limit = 256
		var a AddPorts
		if err := Decode(strings.NewReader(in), limit, &a); err != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(in))
		var first json.RawMessage
		if len(in) > limit || d.Decode(&first) != nil {
			t.Fatalf("accepted %q", in)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			t.Fatalf("accepted %q with more behind it", in)
		}
		if specs, err := a.All(); err == nil && len(specs) == 0 {
			t.Fatalf("no specs and no error for %q", in)
		}
	})
}
