// Package rootlesskitcli reads the command line of rootlesskit and says what it
// means for postern.
//
// RootlessKit runs a command in new namespaces and has other programs serve its
// network: slirp4netns, pasta, VPNKit or gvisor-tap-vsock, and a port driver of its
// own. Whoever calls it (dockerd-rootless.sh, containerd-rootless.sh, BuildKit's and
// Usernetes' scripts) chooses among those by flags. Here there is one engine, so a
// flag is one of three things:
//
//	what the command gets     namespaces, copied directories, addresses, MTU, ports:
//	                          the same as there
//	who provides it           --net and --port-driver, as far as it is our engine or
//	                          none, and a line in the log that says so
//	how that one is run       paths and sandboxes of programs that do not run here:
//	                          accepted, and mentioned with --debug
//
// Parse follows Go's flag package, as RootlessKit does through urfave/cli: one dash
// or two, "--flag=value" or "--flag value", booleans only with "=", the first word
// that is no flag ends the flags, lists are repeated or have commas.
//
// Where they differ, ours is the safer or the wider: a state directory is closed to
// others and what we do not know in it stays; a user without subordinate ids gets his
// own id only, not an error; 126, 127 and 128 and the signal's number are exit codes of
// the command as for postern run. What cannot be had is refused by name: lxc-user-nic,
// SCTP, an unknown propagation.
//
// Networks and port drivers go together as they do there (fits.go), and every driver
// goes with --net=postern. With --net=none, "builtin" takes ports to the command's
// loopback, where there is nothing else. "implicit" has what pasta has: the command's
// listeners, under the same number, on all addresses of the host. But pasta binds all
// addresses for a listener on a loopback address too, to which it then takes the host's
// own clients only; here, such a port is not open to others in the first place. IPv6 is
// published with --ipv6, and on ::1 without.
package rootlesskitcli
