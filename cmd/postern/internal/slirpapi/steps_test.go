package slirpapi

import (
	"fmt"
	"strings"
)

// steps are the requests of TestSideBySide in their order: rules live on from step
// to step. What slirp4netns takes and ours refuses comes late, since ids differ from
// there on, and what ends slirp4netns comes last.
var steps = concat(lifeSteps(), textSteps(), argumentSteps(), differentSteps(), crashSteps())

func concat(all ...[]step) (steps []step) {
	for _, some := range all {
		steps = append(steps, some...)
	}
	return steps
}

// plainSteps are requests with equal answers.
func plainSteps(requests ...string) (steps []step) {
	for _, r := range requests {
		steps = append(steps, step{request: r})
	}
	return steps
}

func arguments(json string) string { return `{"execute":"add_hostfwd","arguments":` + json + `}` }

// lifeSteps add, list and remove.
func lifeSteps() []step {
	return plainSteps(
		listHostFwd,
		add(`"host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80`),
		listHostFwd+"\n",
		add(`"host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80`),   // our own
		add(`"host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80`), // part of it
		arguments(`{"proto":"udp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`),
		arguments(`{"proto":"udp","host_port":8080,"guest_port":80}`),
		add(`"host_addr":"127.0.0.1","host_port":7000,"guest_port":80`), // another program's
		add(`"host_port":8081,"guest_port":81`),
		add(`"host_addr":"","host_port":8082,"guest_addr":"","guest_port":81`),
		add(`"host_addr":null,"host_port":8083,"guest_addr":null,"guest_port":81`),
		add(`"host_addr":5,"host_port":8084,"guest_addr":[],"guest_port":81`),
		add(`"host_addr":"127.0.0.1","host_port":8100,"guest_port":81`),
		add(`"host_addr":"127.0.0.2","host_port":8100,"guest_port":65535`),
		add(`"host_addr":"10.99.99.99","host_port":8100,"guest_port":81`), // not an address of this host
		add(`"host_port":8101,"guest_addr":"10.0.2.15","guest_port":1`),
		add(`"host_port":8102,"guest_addr":"127.0.0.1","guest_port":1`),
		add(`"host_port":8103,"guest_addr":"0.0.0.0","guest_port":1`),
		add(`"host_port":8104,"guest_addr":"8.8.8.8","guest_port":1`),
		add(`"host_port":80,"guest_port":80`),
		listHostFwd,
		remove(2), remove(2), listHostFwd,
		arguments(`{"proto":"udp","host_port":8080,"guest_port":53}`), // free again, with a new id
		remove(99),
		`{"execute":"remove_hostfwd","arguments":{"id":1.9}}`,
		`{"execute":"remove_hostfwd","arguments":{"id":3e0}}`,
		listHostFwd,
	)
}

// textSteps are about the JSON text.
func textSteps() []step {
	const prefix = `{"execute":"list_hostfwd","a":`
	steps := plainSteps(
		"", " ", "[]", "{}", "null", "1", `"x"`, "truex", "1 2", "00", "tru", "{}}", "[1", "x",
		`{"execute":1}`, `{"execute":null}`, `{"execute":""}`, `{"execute":"nope"}`, `{"execute":"LIST_HOSTFWD"}`, `{"Execute":"list_hostfwd"}`,
		`{"execute":"list_hostfwd"`, `{"execute":"list_hostfwd",}`, `{"execute":"list_hostfwd" "a":1}`, `{'execute':'list_hostfwd'}`, "/*c*/"+listHostFwd,
		listHostFwd+" garbage", listHostFwd+"{}", listHostFwd+"\x00", "\x00"+listHostFwd, "\v\f"+listHostFwd, "\xc2\xa0"+listHostFwd,
		"\xef\xbb\xbf"+listHostFwd, " \xef\xbb\xbf"+listHostFwd,
		`{"execute":"list_hostfwd","execute":"x"}`, `{"exec\u0075te":"list_hostfwd"}`, `{"execute\u0000":"list_hostfwd"}`, `{"execute":"list_hostfwd\u0000x"}`,
		`{"execute":"list_hostfwd","arguments":5}`,
		strings.Repeat("[", 4000),
		listHostFwd+strings.Repeat(" ", 4095-len(listHostFwd)),
		listHostFwd+strings.Repeat(" ", 4096-len(listHostFwd)),
		listHostFwd+strings.Repeat(" ", 4097-len(listHostFwd)),
		strings.Repeat("x", 8000),
	)
	for _, value := range []string{
		"1.", "1.e5", "-.5", "0.", "-0", "1E+5", "1e-400", "1e308", ".5", "+1", "01", "-01", "0e1", "0x1", "-", "1e", "1e999", "-1e999", "NaN", "-inf", "1.5.5",
		`"\/\b\f\n\r\t\"\\"`, `"\q"`, `"\u00zz"`, `"\uD83D\uDE00"`, `"\uDE00"`, `"\uD83D\u0041"`, "\"\xff\"", "\"\x01\"", "\"\x7f\"", "\"x\x00y\"",
		`{"a":1,"\u0061":2}`, `{"a":1,"b":{"a":1}}`, `{"":1}`, `[1,]`, `[ ]`, "truex", "nul",
		strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
	} {
		steps = append(steps, step{request: prefix + value + "}"})
	}
	return steps
}

// argumentSteps are about arguments that are wrong in both.
func argumentSteps() []step {
	const ports = `"host_port":8200,"guest_port":80`
	steps := plainSteps(
		arguments(`{"proto":"",`+ports+`}`), arguments(`{"proto":"TCP",`+ports+`}`), arguments(`{"proto":"tcp4",`+ports+`}`), arguments(`{"proto":"tcp ",`+ports+`}`),
		arguments(`{"proto":"sctp","host_addr":"x"}`), arguments(`{"proto":"tcp","proto":"tcp",`+ports+`}`),
		arguments(`{"proto":"tcp"}`), add(`"guest_port":80`), add(`"host_port":8200`), add(`"host_port":"8200","guest_port":80`), add(`"host_port":8200,"guest_port":true`),
		add(`"host_addr":"x","host_port":0,"guest_addr":"x","guest_port":0`), add(`"host_port":0,"guest_addr":"x","guest_port":0`), add(`"host_port":8200,"guest_addr":"x","guest_port":0`),
		add(`"host_port":0.9,"guest_port":80`), add(`"host_port":8200,"guest_port":-0.5`),
		arguments(`{"proto":"tcp\u0000x","host_addr":"127.0.0.1\u0000x","host_port":8201.9,"guest_port":8e1,"more":{"a":[1]}}`),
		`{"arguments":{"proto":"udp","host_port":8202,"guest_port":53},"execute":"add_hostfwd"}`,
		listHostFwd,
		`{"execute":"remove_hostfwd"}`,
	)
	for _, addr := range []string{"127.1", "0x7f.1", " 127.0.0.1", "127.0.0.01", "localhost", "::1", "::ffff:127.0.0.1", "256.1.1.1", "*"} {
		steps = append(steps, step{request: add(`"host_addr":"` + addr + `",` + ports)}, step{request: add(`"guest_addr":"` + addr + `",` + ports)})
	}
	for _, id := range []string{"null", "[]", "5", "{}", `{"id":null}`, `{"id":"1"}`, `{"id":0}`, `{"id":-1}`, `{"id":0.5}`, `{"id":true}`, `{"id":1e30}`, `{"ID":4}`, `{"id":4,"id":4}`, `{"id":4294967300}`} {
		steps = append(steps, step{request: `{"execute":"remove_hostfwd","arguments":` + id + `}`})
	}
	return steps
}

// differentSteps are what slirp4netns takes and ours refuses.
func differentSteps() (steps []step) {
	const port = "it takes the port for another one, or for any free one"
	// The ids that slirp4netns gives are its next ones.
	id := 17
	differs := func(request, why, ours string) {
		steps = append(steps, step{request, why, fmt.Sprintf(`{"return":{"id":%d}}`, id), badRequest("add_hostfwd: " + ours)})
		id++
	}
	for i, n := range []string{"-1", "65537", "1e18"} {
		differs(add(fmt.Sprintf(`"host_addr":"127.0.1.%d","host_port":%s,"guest_port":80`, i, n)), port, "bad arguments.host_port")
		differs(add(fmt.Sprintf(`"host_addr":"127.0.2.%d","host_port":8300,"guest_port":%s`, i, n)), port, "bad arguments.guest_port")
	}
	for i, guest := range []string{"10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "255.255.255.255", "224.0.0.1"} {
		differs(add(fmt.Sprintf(`"host_port":%d,"guest_addr":%q,"guest_port":80`, 8310+i, guest)), "nobody can have this address", "slirp_add_hostfwd failed")
	}
	differs(add(`"host_addr":"224.0.0.1","host_port":8320,"guest_port":80`), "nobody can connect to this address", "slirp_add_hostfwd failed")
	for _, number := range []string{"0x1", "-"} {
		s := step{number, "a lone number that only C knows", badRequest("cannot parse JSON"), badRequest("json_object() failed")}
		if number == "-" {
			s.theirs, s.ours = s.ours, s.theirs
		}
		steps = append(steps, s)
	}
	return steps
}

// crashSteps are what ends slirp4netns.
func crashSteps() (steps []step) {
	const ports = `"host_port":8400,"guest_port":80`
	for _, request := range []string{
		`{"execute":"add_hostfwd"}`, arguments(`null`), arguments(`[]`), arguments(`5`), arguments(`{}`),
		arguments(`{` + ports + `}`), arguments(`{"proto":null,` + ports + `}`), arguments(`{"proto":5,` + ports + `}`), arguments(`{"Proto":"tcp",` + ports + `}`),
	} {
		steps = append(steps, step{request, "slirp4netns ends by SIGSEGV", "", badRequest("add_hostfwd: bad arguments.proto")})
	}
	return append(steps, step{request: `{"execute":"add_hostfwd","arguments":{"proto":"tcp4"}}`}) // both go on
}
