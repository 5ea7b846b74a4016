package slirp4netns

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

const list = `{"execute":"list_hostfwd"}`

// TestDecodeText is what slirp4netns 1.2.0 takes for JSON.
func TestDecodeText(t *testing.T) {
	odd := func(value string) string { return `{"execute":"list_hostfwd","a":` + value + `}` }
	for in, want := range map[string]error{
		list: nil, list + "\n": nil, list + " garbage": nil, list + "{}": nil, list + "\x00": nil,
		"\xef\xbb\xbf" + list: nil, "\v\f\t\r\n " + list: nil,
		`{"exec\u0075te":"list_hostfwd"}`: nil, `{"execute":"list_hostfwd\u0000x"}`: nil,
		list + strings.Repeat(" ", MaxRequest-len(list)):   nil,
		list + strings.Repeat(" ", MaxRequest-len(list)+1): ErrTooLarge,
		"": ErrIncomplete, " \n": ErrIncomplete, `{"execute":"list_hostfwd"`: ErrIncomplete,
		"\x00" + list: ErrJSON, `{"execute":"list_hostfwd"` + "\x00}": ErrJSON,
		" \xef\xbb\xbf" + list: ErrJSON, "\xc2\xa0" + list: ErrJSON, "\x1c" + list: ErrJSON, "/**/" + list: ErrJSON,
		`{"execute":"list_hostfwd",}`: ErrJSON, `{'execute':'list_hostfwd'}`: ErrJSON, `{execute:1}`: ErrJSON,
		`{"execute":"list_hostfwd" "a":1}`: ErrJSON, `{"execute":"list_hostfwd","execute":"x"}`: ErrJSON,
		`{"execute\u0000":"list_hostfwd"}`: ErrJSON,
		`[]`:                               ErrObject, `null`: ErrObject, `nullx`: ErrObject, `1`: ErrObject, `1 2`: ErrObject, `1x`: ErrObject, `"x"`: ErrObject, `true`: ErrObject, `[]]`: ErrObject,
		`00`: ErrJSON, `tru`: ErrIncomplete, `trux`: ErrJSON, `x`: ErrJSON,
		`{}`: ErrNoExecute, `{}}`: ErrNoExecute, `{"execute":1}`: ErrNoExecute, `{"execute":null}`: ErrNoExecute, `{"Execute":"list_hostfwd"}`: ErrNoExecute,
		`{"execute":""}`: ErrExecute, `{"execute":"LIST_HOSTFWD"}`: ErrExecute,
		odd(`1.`): nil, odd(`1.e5`): nil, odd(`-.5`): nil, odd(`0.`): nil, odd(`-0`): nil, odd(`1E+5`): nil, odd(`1e-999`): nil,
		odd(`.5`): ErrJSON, odd(`+1`): ErrJSON, odd(`01`): ErrJSON, odd(`-01`): ErrJSON, odd(`0e1`): ErrJSON, odd(`0x1`): ErrJSON, odd(`-`): ErrJSON, odd(`- 1`): ErrJSON,
		odd(`1e`): ErrJSON, odd(`1e+`): ErrJSON, odd(`1e999`): ErrJSON, odd(`-1e999`): ErrJSON, odd(`NaN`): ErrJSON, odd(`-inf`): ErrJSON, odd(`1_0`): ErrJSON, odd(`1.5.5`): ErrJSON,
		odd(`"\/\b\f\n\r\t\"\\"`): nil, odd(`"\u0000"`): nil, odd(`"\uD83D\uDE00"`): nil, odd("\"\xff\x7f\""): nil, odd(`"\uabCD"`): nil,
		odd(`"\q"`): ErrJSON, odd(`"\U0041"`): ErrJSON, odd(`"\u00zz"`): ErrJSON, odd(`"\u00` + "\x10" + `0"`): ErrJSON, odd(`"\uDE00"`): ErrJSON, odd(`"\uD83Dx"`): ErrJSON, odd(`"\uD83D\u0041"`): ErrJSON,
		odd("\"\x01\""): ErrJSON, odd("\"\t\""): ErrJSON, odd("\"x\x00y\""): ErrJSON,
		odd(`{"":1,"b":[ ]}`): nil, odd(`{"a":1,"b":{"a":1}}`): nil, odd(`{"a":1,"\u0061":2}`): ErrJSON, odd(`{"a"}`): ErrJSON, odd(`{"a":}`): ErrJSON, odd(`{,}`): ErrJSON,
		odd(`[1,]`): ErrJSON, odd(`[,1]`): ErrJSON, odd(`[1 2]`): ErrJSON, odd(`truex`): ErrJSON, odd(`True`): ErrJSON,
		odd(strings.Repeat("[", 2000) + strings.Repeat("]", 2000)): nil,
		strings.Repeat("[", MaxRequest):                            ErrIncomplete,
		strings.Repeat(`{"a":`, MaxRequest/5):                      ErrIncomplete,
	} {
		got, err := Decode([]byte(in))
		if !errors.Is(err, want) || errors.Is(want, ErrJSON) && want != err {
			t.Errorf("Decode(%.80q) = %v, want %v", in, err, want)
		}
		if err == nil && got != (ListHostFwd{}) {
			t.Errorf("Decode(%.80q) = %#v", in, got)
		}
	}
}

func TestDecodeAdd(t *testing.T) {
	full := AddHostFwd{TCP, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.2.100"), 8080, 80}
	short := AddHostFwd{Proto: UDP, HostAddr: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}
	with := func(change func(*AddHostFwd)) AddHostFwd { a := full; change(&a); return a }
	const ports = `"host_port":8080,"guest_port":80`
	for in, want := range map[string]any{
		`{"proto":"tcp","host_addr":"127.0.0.1","guest_addr":"10.0.2.100",` + ports + `}`:                         full,
		`{"proto":"tcp","host_addr":"127.0.0.1","guest_addr":"10.0.2.100",` + ports + `,"extra":{"proto":[1,2]}}`: full,
		`{"proto":"udp",` + ports + `}`:                                                                      short,
		`{"proto":"udp","host_addr":"","guest_addr":"",` + ports + `}`:                                       short,
		`{"proto":"udp","host_addr":null,"guest_addr":null,` + ports + `}`:                                   short,
		`{"proto":"udp","host_addr":5,"guest_addr":[],` + ports + `}`:                                        short,
		`{"proto":"udp\u0000x",` + ports + `}`:                                                               short,
		`{"proto":"tcp","host_addr":"127.0.0.1","guest_addr":"0.0.0.0",` + ports + `}`:                       with(func(a *AddHostFwd) { a.GuestAddr = netip.IPv4Unspecified() }),
		`{"proto":"tcp","host_addr":"127.0.0.1","guest_addr":"10.0.2.100","host_port":1,"guest_port":65535}`: with(func(a *AddHostFwd) { a.HostPort, a.GuestPort = 1, 65535 }),
		`{"proto":"udp","host_port":8080.7,"guest_port":8e1}`:                                                short,

		`null`: ErrAddProto, `[]`: ErrAddProto, `{}`: ErrAddProto, `{"proto":null,` + ports + `}`: ErrAddProto, `{"proto":5,` + ports + `}`: ErrAddProto,
		`{"Proto":"tcp",` + ports + `}`: ErrAddProto, `{"proto":"TCP",` + ports + `}`: ErrAddProto, `{"proto":"tcp4",` + ports + `}`: ErrAddProto, `{"proto":"",` + ports + `}`: ErrAddProto, `{"proto":"sctp","host_addr":"x"}`: ErrAddProto,
		`{"proto":"tcp","host_addr":"x","host_port":0}`: ErrAddHostAddr,
		`{"proto":"tcp"}`: ErrAddHostPort, `{"proto":"tcp","guest_port":80}`: ErrAddHostPort, `{"proto":"tcp","host_port":0,"guest_addr":"x"}`: ErrAddHostPort,
		`{"proto":"tcp","host_port":1,"guest_addr":"x","guest_port":0}`: ErrAddGuestAddr, `{"proto":"tcp","host_port":1,"guest_addr":"::1","guest_port":1}`: ErrAddGuestAddr,
		`{"proto":"tcp","host_port":1}`: ErrAddGuestPort, `{"proto":"tcp","host_port":1,"guest_port":0}`: ErrAddGuestPort, `{"proto":"tcp","host_port":1,"guest_port":"80"}`: ErrAddGuestPort,
		`{"proto":"tcp","proto":"udp",` + ports + `}`: ErrJSON,
	} {
		checkDecode(t, `{"arguments":`+in+`,"execute":"add_hostfwd"}`, want)
	}
	checkDecode(t, `{"execute":"add_hostfwd"}`, ErrAddProto)
	for _, port := range []string{"-1", "0", "0.9", "-0", "65536", "65536.5", "131072", "1e18", "99999999999", `"80"`, "true", "null", "[]", "{}"} {
		checkDecode(t, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":`+port+`,"guest_port":80}}`, ErrAddHostPort)
		checkDecode(t, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":80,"guest_port":`+port+`}}`, ErrAddGuestPort)
	}
	for _, addr := range []string{"127.1", "0x7f.1", " 127.0.0.1", "127.0.0.1 ", "127.0.0.01", "localhost", "::", "::1", "[::1]", "::ffff:127.0.0.1", "256.1.1.1", "1.2.3", "*", "127.0.0.1:80", "fe80::1%lo"} {
		checkDecode(t, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"`+addr+`",`+ports+`}}`, ErrAddHostAddr)
		checkDecode(t, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","guest_addr":"`+addr+`",`+ports+`}}`, ErrAddGuestAddr)
	}
}

func TestDecodeRemove(t *testing.T) {
	for in, want := range map[string]any{
		`{"id":1}`: RemoveHostFwd{1}, `{"id":1.9}`: RemoveHostFwd{1}, `{"id":2e0}`: RemoveHostFwd{2}, `{"id":2147483647}`: RemoveHostFwd{2147483647},
		`{"id":0}`: ErrRemoveID, `{"id":0.5}`: ErrRemoveID, `{"id":-1}`: ErrRemoveID, `{"id":"1"}`: ErrRemoveID, `{"id":true}`: ErrRemoveID, `{"id":null}`: ErrRemoveID,
		`{"id":2147483648}`: ErrRemoveID, `{"id":1e30}`: ErrRemoveID, `{"ID":1}`: ErrRemoveID, `{}`: ErrRemoveID, `[]`: ErrRemoveID, `5`: ErrRemoveID, `{"id":1,"id":2}`: ErrJSON,
	} {
		checkDecode(t, `{"execute":"remove_hostfwd","arguments":`+in+`}`, want)
	}
	checkDecode(t, `{"execute":"remove_hostfwd"}`, ErrRemoveID)
}

// checkDecode wants a Request or an error.
func checkDecode(t *testing.T, in string, want any) {
	t.Helper()
	got, err := Decode([]byte(in))
	if wanted, fails := want.(error); fails {
		if !errors.Is(err, wanted) {
			t.Errorf("Decode(%s) = %v, %v; want %v", in, got, err, wanted)
		}
	} else if err != nil || got != want {
		t.Errorf("Decode(%s) = %v, %v; want %v", in, got, err, want)
	}
}

// FuzzDecode holds that what is not refused is in its bounds, that every beginning
// of a right text is ErrIncomplete or complete, and that encoding/json agrees where
// it has the same rules.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		list, list + "\x00", "", "[]", "\xef\xbb\xbf{}", `{"execute":"remove_hostfwd","arguments":{"id":1.5}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}`,
		`{"a":[1.e5,-0.5,"\ud83d\ude00\u0000",true,null],"execute":"x"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		request, err := Decode(in)
		switch r := request.(type) {
		case AddHostFwd:
			if r.HostPort == 0 || r.GuestPort == 0 || r.Proto != TCP && r.Proto != UDP || !r.HostAddr.Is4() || r.GuestAddr.Is6() {
				t.Fatalf("Decode(%q) = %+v", in, r)
			}
		case RemoveHostFwd:
			if r.ID < 1 {
				t.Fatalf("Decode(%q) = %+v", in, r)
			}
		}
		var refusal Refusal
		if (err == nil) != (request != nil) || err != nil && !errors.As(err, &refusal) || len(in) > MaxRequest && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("Decode(%q) = %v, %v", in, request, err)
		}
		if !json.Valid(AppendError(nil, err)) {
			t.Fatalf("Decode(%q): %v is no JSON", in, err)
		}
		if err == nil && len(in) < 512 { // the square of which is quick
			checkBeginnings(t, in, request)
		}
		checkAgainstJSON(t, in, err)
	})
}

// checkBeginnings checks what a server sees that reads a right text in pieces.
func checkBeginnings(t *testing.T, in []byte, whole Request) {
	for n := range in {
		got, err := Decode(in[:n])
		if err == nil && got == whole { // what follows does not count
			return
		}
		if !errors.Is(err, ErrIncomplete) && n != 1 && n != 2 { // half a byte order mark
			t.Fatalf("Decode(%q) = %v, %v; but the whole %q is right", in[:n], got, err, in)
		}
	}
}

// checkAgainstJSON checks that a JSON object is an object to us, too, unless it has
// one of the few things of which slirp4netns is stricter.
func checkAgainstJSON(t *testing.T, in []byte, err error) {
	var o map[string]json.RawMessage
	strict := strings.Contains(string(in), `\u`) || errors.Is(err, ErrTooLarge)
	if strict || json.Unmarshal(in, &o) != nil || o == nil || !errors.Is(err, ErrJSON) {
		return
	}
	d := json.NewDecoder(strings.NewReader(string(in)))
	d.UseNumber()
	for {
		token, tokenErr := d.Token()
		if tokenErr != nil {
			break
		}
		if n, ok := token.(json.Number); ok {
			if _, floatErr := n.Float64(); floatErr != nil || strings.HasPrefix(strings.TrimPrefix(n.String(), "-"), "0") {
				return // 1e999, and 0e1
			}
		}
	}
	if !hasTwice(in) {
		t.Fatalf("Decode(%q) = %v, but it is JSON", in, err)
	}
}

// hasTwice reports whether some string occurs twice, as a name may.
func hasTwice(in []byte) bool {
	seen := make(map[string]bool)
	d := json.NewDecoder(strings.NewReader(string(in)))
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		s, ok := token.(string)
		if ok && seen[s] {
			return true
		}
		seen[s] = seen[s] || ok
	}
}
