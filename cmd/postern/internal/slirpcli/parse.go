package slirpcli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/postern-net/postern/stack/netplan"
)

// Parse reads a command line, without the program's name. The error is a
// *UsageError where the usage belongs to the answer.
func Parse(args []string) (Options, error) {
	o := Options{ExitFD: noFD, ReadyFD: noFD, MTU: defaultMTU, CIDR: netplan.DefaultV4, TAPFD: noFD}
	s := scanner{options: options(), args: args}
	for {
		g, err := s.next()
		if err != nil {
			return Options{}, &UsageError{err}
		}
		if g == nil {
			break
		}
		if err := g.option.apply(&o, g.arg); err != nil {
			return Options{}, err
		}
		if o.Action != Serve {
			return o, nil
		}
	}
	target := o.setTarget
	if o.Bess {
		target = o.setSocket
	}
	if err := target(s.operands); err != nil {
		return Options{}, err
	}
	return o, o.check()
}

// setSocket reads the operands of --target-type=bess, and refuses options that are
// about namespaces, also those that say what goes without saying.
func (o *Options) setSocket(operands []string) error {
	for _, c := range []struct {
		name  string
		given bool
	}{{"--configure", o.Configure}, {"--netns-type", o.NetNSType != ""}, {"--userns-path", o.UserNSPath != ""}} {
		if c.given {
			return &UsageError{fmt.Errorf("%s conflicts with --target-type=bess", c.name)}
		}
	}
	switch {
	case len(operands) == 0:
		return &UsageError{}
	case len(operands) > 1:
		return &UsageError{fmt.Errorf("too many arguments: want the path of the socket alone with --target-type=bess")}
	}
	o.Path = operands[0]
	if o.Path == "" || len(o.Path) > maxSocket {
		return fmt.Errorf("--target-type=bess: a path of %d bytes cannot be a socket's, want 1 to %d", len(o.Path), maxSocket)
	}
	return nil
}

// setTarget reads the operands.
func (o *Options) setTarget(operands []string) error {
	if o.NetNSType == "" {
		o.NetNSType = TypePID
	}
	want := 2
	if o.NetNSType == TypeTAPFD {
		want = 1
	}
	if len(operands) < want {
		return &UsageError{}
	}
	if err := o.setPlace(operands[0]); err != nil {
		return err
	}
	if len(operands) > 1 {
		o.TAPName, o.Extra = operands[1], operands[2:]
	}
	if want == 2 && o.TAPName == "" {
		return &UsageError{errors.New("TAPNAME is empty: want the name of an interface, like tap0")}
	}
	return nil
}

// setPlace reads the first operand.
func (o *Options) setPlace(operand string) error {
	n, err := strconv.Atoi(operand)
	switch {
	case o.NetNSType == TypePath && operand == "":
		return &UsageError{errors.New("PATH is empty: want the file of a network namespace")}
	case o.NetNSType == TypePath:
		o.Path = operand
	case o.NetNSType == TypeTAPFD && (err != nil || n < 0):
		return &UsageError{fmt.Errorf("FD %q: want the number of an open descriptor, 0 or more", operand)}
	case o.NetNSType == TypeTAPFD:
		o.TAPFD = n
	case err != nil || n < 1:
		return &UsageError{fmt.Errorf("PID %q: want the number of a process", operand)}
	default:
		o.PID = n
	}
	return nil
}

// check holds the rules between options.
func (o *Options) check() error {
	if o.MAC != [6]byte{} && !o.Configure && !o.Bess {
		return &UsageError{errors.New("--macaddress needs --configure")}
	}
	return o.checkDescriptors()
}

// checkDescriptors refuses one descriptor for two purposes: each is closed by the
// one that it serves.
func (o *Options) checkDescriptors() error {
	taken := map[int]string{}
	for _, d := range []struct {
		name string
		fd   int
	}{{"--ready-fd", o.ReadyFD}, {"--exit-fd", o.ExitFD}, {"the TAP", o.TAPFD}} {
		if other := taken[d.fd]; d.fd != noFD && other != "" {
			return fmt.Errorf("%s and %s are the same descriptor, %d: want different ones", other, d.name, d.fd)
		}
		taken[d.fd] = d.name
	}
	return nil
}
