package handoff

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// samples holds one filled message of each kind.
func samples() []Message {
	return []Message{
		&AgentSetup{NetNS: "/n", ResolvConf: "/r", Hosts: "/h", Propagation: "rslave", CopyUp: []string{"/etc"}, PIDNS: true, Terminal: true,
			HostNet: true, Loopback: true, Reaper: true, Cgroup2: true},
		&AgentNetNS{},
		&AgentReady{Notices: []string{"one"}},
		&AgentFailed{Code: 127, Reason: "no such file"},
		&AgentStart{Foreground: true},
		&AgentStarted{PID: 7},
		&AgentSignal{Signal: 15},
		&AgentStopped{Signal: 20},
		&AgentContinue{Foreground: true},
		&AgentExited{Code: 3},
		&AgentExited{Signal: 9},
		&AgentKill{},
		&EngineConfig{
			Endpoint: Packet, MTU: 1500, Network4: netip.MustParsePrefix("10.0.2.0/24"),
			ContainerMAC: [6]byte{2, 0, 0, 0, 0, 1}, HostLoopback: true, HostLoopbackPorts: []uint16{80},
			Outbound4: netip.MustParseAddr("192.0.2.1"), Upstreams: []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%eth0]:53")},
			Search: []string{"example.org"}, UDPIdle: time.Minute, LogLevel: -4, LogJSON: true, Express: Express{TCP4: true, UDP6: true},
		},
		&EngineConfig{Endpoint: BareTAP, MTU: 1500, NoDNS: true,
			DHCPFirst: netip.MustParseAddr("10.0.2.15"), DHCPLast: netip.MustParseAddr("10.0.2.30")},
		&EngineConfig{Endpoint: Seqpacket, MTU: 9000},
		&EngineReady{Offloads: "CSUM", Notice: "n"},
		&EngineFailed{Reason: "r", Device: true},
		&EngineResolvers{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}, Search: []string{"a"}},
		&EngineSnapshotRequest{Seq: 4},
		&EngineSnapshot{Seq: 4, Counters: map[string]uint64{"frames_in": 1}, TCP: 1, UDP: 2, Echo: 3, Express: 1},
		&EngineExpressLost{},
		&EnginePorts{Seq: 5, Listeners: []PortListener{
			{Rule: 1, Network: "tcp", Bound: netip.MustParseAddrPort("[::1]:8080"), TargetPort: 80, Proxy: 2},
			{Rule: 2, Network: "udp", Bound: netip.MustParseAddrPort("192.0.2.1:53"), TargetAddr: netip.MustParseAddr("127.0.0.1"), TargetPort: 53},
			{Rule: 3, Network: "unix", TargetPath: "/run/app.sock", Reverse: true},
		}},
		&EnginePortsAnswer{Seq: 5, Reason: "no socket"},
		&EngineShut{Rule: 3},
		&EngineStock{Sockets: true, Root: true},
		&EngineOrder{Kind: SocketUDP6, N: MaxOrder},
		&EngineDial{Seq: 7, Rule: 3, Path: "/run/a.sock", Reverse: true},
		&EngineDialed{Seq: 7, Errno: 11, Reason: "no room"},
	}
}

func TestRoundTrip(t *testing.T) {
	seen := make(map[string]bool)
	for _, m := range samples() {
		seen[m.kind()] = true
		b, err := Encode(m)
		if err != nil {
			t.Fatalf("Encode(%s): %v", m.kind(), err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("Decode(%s): %v", b, err)
		}
		opts := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})}
		if diff := cmp.Diff(m, got, opts); diff != "" {
			t.Errorf("%s changed on the way:\n%s", m.kind(), diff)
		}
	}
	for _, make := range messages {
		if k := make().kind(); !seen[k] {
			t.Errorf("no sample of %s", k)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct {
		name, in string
		want     error
	}{
		{"empty", "", ErrMalformed},
		{"null", "null", ErrMalformed},
		{"null body", `{"v":1,"kind":"agent.kill","body":null}`, ErrMalformed},
		{"no body", `{"v":1,"kind":"agent.kill"}`, ErrMalformed},
		{"other version", `{"v":2,"kind":"agent.kill","body":{}}`, ErrVersion},
		{"no version", `{"kind":"agent.kill","body":{}}`, ErrVersion},
		{"unknown kind", `{"v":1,"kind":"agent.dance","body":{}}`, ErrMalformed},
		{"unknown field", `{"v":1,"kind":"agent.kill","body":{"x":1}}`, ErrMalformed},
		{"two objects", `{"v":1,"kind":"agent.kill","body":{}}{}`, ErrMalformed},
		{"signal 0", `{"v":1,"kind":"agent.signal","body":{"signal":0}}`, ErrMalformed},
		{"signal 65", `{"v":1,"kind":"agent.signal","body":{"signal":65}}`, ErrMalformed},
		{"code 256", `{"v":1,"kind":"agent.exited","body":{"code":256}}`, ErrMalformed},
		{"code 0 failed", `{"v":1,"kind":"agent.failed","body":{"code":0,"reason":""}}`, ErrMalformed},
		{"pid 0", `{"v":1,"kind":"agent.started","body":{"pid":0}}`, ErrMalformed},
		{"propagation", `{"v":1,"kind":"agent.setup","body":{"propagation":"unbindable"}}`, ErrMalformed},
		{"relative path", `{"v":1,"kind":"agent.setup","body":{"propagation":"rslave","netns":"n"}}`, ErrMalformed},
		{"endpoint", `{"v":1,"kind":"engine.config","body":{"endpoint":"x","mtu":1500}}`, ErrMalformed},
		{"no endpoint", `{"v":1,"kind":"engine.config","body":{"mtu":1500}}`, ErrMalformed},
		{"endpoint in capitals", `{"v":1,"kind":"engine.config","body":{"endpoint":"SEQPACKET","mtu":1500}}`, ErrMalformed},
		{"mtu of a seqpacket", `{"v":1,"kind":"engine.config","body":{"endpoint":"seqpacket","mtu":65536}}`, ErrMalformed},
		{"mtu", `{"v":1,"kind":"engine.config","body":{"endpoint":"tap","mtu":67}}`, ErrMalformed},
		{"no listener", `{"v":1,"kind":"engine.ports","body":{"seq":1,"listeners":[]}}`, ErrMalformed},
		{"listeners", `{"v":1,"kind":"engine.ports","body":{"seq":1,"listeners":[{}` + strings.Repeat(",{}", MaxPortsPerMessage) + `]}}`, ErrMalformed},
		{"socket kind", `{"v":1,"kind":"engine.order","body":{"kind":6,"n":1}}`, ErrMalformed},
		{"order of 0", `{"v":1,"kind":"engine.order","body":{"kind":0,"n":0}}`, ErrMalformed},
		{"order of 1025", `{"v":1,"kind":"engine.order","body":{"kind":0,"n":1025}}`, ErrMalformed},
		{"too long", strings.Repeat(" ", MaxMessage+1), ErrTooLong},
	}
	for _, tc := range tests {
		if m, err := Decode([]byte(tc.in)); !errors.Is(err, tc.want) {
			t.Errorf("%s: Decode = %v, %v; want error %v", tc.name, m, err, tc.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	if _, err := Encode(&AgentReady{Notices: []string{strings.Repeat("x", MaxMessage)}}); !errors.Is(err, ErrTooLong) {
		t.Errorf("Encode of a message over the limit: %v, want ErrTooLong", err)
	}
	if _, err := Encode(&AgentSignal{Signal: 99}); !errors.Is(err, ErrMalformed) {
		t.Errorf("Encode of signal 99: %v, want ErrMalformed", err)
	}
}

// FuzzDecode holds that whatever decodes also encodes and decodes to the same
// bytes again: the supervisor never passes on what it would not take itself.
func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		first, err := Encode(m)
		if errors.Is(err, ErrTooLong) {
			return // escaping can make a message longer
		}
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		again, err := Decode(first)
		if err != nil {
			t.Fatalf("own encoding refused: %v\n%s", err, first)
		}
		second, err := Encode(again)
		if err != nil || string(first) != string(second) {
			t.Fatalf("encoding is not stable (%v):\n%s\n%s", err, first, second)
		}
	})
}
