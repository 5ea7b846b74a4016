package rawfork

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors is a message under preparation whose control part has room for a
// fixed number of descriptors. The child's steps write their results into it.
type Descriptors struct {
	oob   []byte
	taken int
}

// NewDescriptors prepares room for n descriptors, 1 to fdpass.MaxFiles.
func NewDescriptors(n int) *Descriptors {
	return &Descriptors{oob: unix.UnixRights(make([]int, n)...)}
}

// Next is the place of the next descriptor: the Poke of the step that opens it.
func (d *Descriptors) Next() *int32 {
	at := unix.CmsgLen(0) + 4*d.taken
	d.taken++
	return (*int32)(unsafe.Pointer(&d.oob[at : at+4][0]))
}

// Message is the address of the msghdr for a sendmsg(2) step of s: one byte of data
// and the descriptors.
func (d *Descriptors) Message(s *Script, body byte) Arg {
	iov := &unix.Iovec{Base: &[]byte{body}[0]}
	iov.SetLen(1)
	m := &unix.Msghdr{Iov: iov, Control: &d.oob[0]}
	m.SetIovlen(1)
	m.SetControllen(len(d.oob))
	return Pin(s, m)
}
