package rawfork

import (
	"syscall"
	"unsafe"
)

// Reg is a register of the child: the place where one step leaves its result for
// a later one. The zero Reg is none.
type Reg uint8

// Control holds the child's end of the control socket from the start.
const Control Reg = 1

// registers is how many the child has, the unused zeroth included.
const registers = 16

// Arg is one argument of a system call: a number known beforehand, or what a
// register holds by then.
type Arg struct {
	value uintptr
	reg   Reg
}

// Int is a number as an argument; negative ones are sign-extended, as the kernel
// expects of descriptors such as AT_FDCWD.
func Int(v int) Arg { return Arg{value: uintptr(v)} }

// Arg is the register's value as an argument.
func (r Reg) Arg() Arg { return Arg{reg: r} }

// Step is one system call of the child and what becomes of its result. EINTR is
// always tried again.
type Step struct {
	// What says what the step is for, in the words of an error message: "open
	// /dev/net/tun".
	What string
	// Nr is the number of the system call.
	Nr uintptr
	// Args are its arguments; missing ones are 0.
	Args [6]Arg
	// Store, if not zero, keeps the result in that register.
	Store Reg
	// Poke, if not nil, is where the result is written in the child's copy of
	// memory: a descriptor's place in a control message.
	Poke *int32
	// Least is the smallest good result. A smaller one is reported as EPIPE: a
	// read that found the other end closed.
	Least uintptr
	// Ignore lists errnos after which the script goes on; unused entries are 0.
	Ignore [3]syscall.Errno
	// Failed, if not zero, is where the script goes on after an ignored errno.
	Failed Label
	// NonZero, if not zero, is where it goes on when the result is not 0: the
	// parent's side of a fork.
	NonZero Label
}

// Label is a place in a script. The zero Label is none.
type Label int

// Script is what a child does. It is built by one goroutine and not changed once
// forked; it may be forked more than once.
type Script struct {
	steps  []*Step
	labels []int // index of the step that each Label stands before
	regs   Reg   // how many are taken, besides Control
	// pins keep what the arguments point at on the heap, where it never moves.
	pins []any
}

// Add appends a step.
func (s *Script) Add(st Step) { s.steps = append(s.steps, &st) }

// Call appends a system call that has to succeed.
func (s *Script) Call(what string, nr uintptr, args ...Arg) {
	st := Step{What: what, Nr: nr}
	copy(st.Args[:], args)
	s.Add(st)
}

// Try appends a system call whose failure with one of the errnos does not matter.
func (s *Script) Try(what string, ignore [3]syscall.Errno, nr uintptr, args ...Arg) {
	st := Step{What: what, Nr: nr, Ignore: ignore}
	copy(st.Args[:], args)
	s.Add(st)
}

// Exit appends the script's end with that exit code. A script that has no step
// left ends with code 0 by itself.
func (s *Script) Exit(code int) {
	s.Call("exit", syscall.SYS_EXIT_GROUP, Int(code))
}

// NewReg gives a register that no other step uses. A script has at most 14.
func (s *Script) NewReg() Reg {
	s.regs++
	if Control+s.regs >= registers {
		panic("rawfork: a script has 14 registers")
	}
	return Control + s.regs
}

// NewLabel gives a label to jump to; Place says where it is.
func (s *Script) NewLabel() Label {
	s.labels = append(s.labels, -1)
	return Label(len(s.labels))
}

// Place puts the label before the step that is added next.
func (s *Script) Place(l Label) { s.labels[l-1] = len(s.steps) }

// Path is a string as an argument, ended by a zero byte. The caller has checked
// that it holds none itself (see Exec).
func (s *Script) Path(p string) Arg { return s.Bytes(append([]byte(p), 0)) }

// Bytes is the address of b's first byte as an argument; b must not be empty.
func (s *Script) Bytes(b []byte) Arg {
	s.pins = append(s.pins, b)
	return Arg{value: uintptr(unsafe.Pointer(&b[0]))}
}

// Pin is the address of *p as an argument.
func Pin[T any](s *Script, p *T) Arg {
	s.pins = append(s.pins, p)
	return Arg{value: uintptr(unsafe.Pointer(p))}
}

// Strings is an array of strings ended by a nil pointer as an argument: execve's
// argv and envp.
func (s *Script) Strings(list []string) Arg {
	vector := make([]*byte, len(list)+1)
	for i, v := range list {
		b := append([]byte(v), 0)
		vector[i] = &b[0]
	}
	return Pin(s, &vector[0])
}
