package slirp4netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAppendError is the table of all errors, byte for byte.
func TestAppendError(t *testing.T) {
	for err, text := range map[error]string{
		ErrTooLarge:     "too large message",
		ErrJSON:         "cannot parse JSON",
		ErrIncomplete:   "cannot parse JSON",
		ErrObject:       "json_object() failed",
		ErrNoExecute:    "no execute found",
		ErrExecute:      "unknown execute",
		ErrAddProto:     "add_hostfwd: bad arguments.proto",
		ErrAddHostAddr:  "add_hostfwd: bad arguments.host_addr",
		ErrAddHostPort:  "add_hostfwd: bad arguments.host_port",
		ErrAddGuestAddr: "add_hostfwd: bad arguments.guest_addr",
		ErrAddGuestPort: "add_hostfwd: bad arguments.guest_port",
		ErrAdd:          "add_hostfwd: slirp_add_hostfwd failed",
		ErrRemoveID:     "remove_hostfwd: bad arguments.id",
		ErrRemove:       "remove_hostfwd: slirp_remove_hostfwd failed",

		fmt.Errorf("publish: %w", ErrAdd): "add_hostfwd: slirp_add_hostfwd failed",
		errors.New(`"`):                   "unknown execute",
	} {
		if got, want := string(AppendError(nil, err)), `{"error":{"desc":"bad request: `+text+`"}}`; got != want {
			t.Errorf("AppendError(%v) = %s, want %s", err, got, want)
		}
	}
}

func TestAppendReplies(t *testing.T) {
	entries := []Entry{
		{1, TCP, netip.IPv4Unspecified(), netip.MustParseAddr("10.0.2.100"), 8080, 80},
		{42, UDP, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.2.15"), 65535, 1},
	}
	const first = `{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`
	const second = `{"id":42,"proto":"udp","host_addr":"127.0.0.1","host_port":65535,"guest_addr":"10.0.2.15","guest_port":1}`
	for _, tc := range []struct{ got, want string }{
		{string(AppendAdded(nil, 42)), `{"return":{"id":42}}`},
		{string(AppendRemoved([]byte("x"))), `x{"return":{}}`},
		{string(AppendList(nil, nil)), `{"return":{"entries":[]},"entries":[]}`},
		{string(AppendList([]byte("x"), entries[:1])), `x{"return":{"entries":[` + first + `]},"entries":[` + first + `]}`},
		{string(AppendList(nil, entries)), `{"return":{"entries":[` + first + `,` + second + `]},"entries":[` + first + `,` + second + `]}`},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Error(diff)
		}
	}
	var both struct {
		Return  struct{ Entries []any }
		Entries []any
	}
	if err := json.Unmarshal(AppendList(nil, entries), &both); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(both.Return.Entries, both.Entries); diff != "" || len(both.Entries) != 2 {
		t.Errorf("the list in two shapes: %d entries, %s", len(both.Entries), diff)
	}
}
