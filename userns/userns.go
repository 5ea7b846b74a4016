// Package userns holds the arithmetic of user-namespace id maps: which id inside
// a namespace is which id outside, in the text form that the kernel reads and
// writes at /proc/PID/uid_map and /proc/PID/gid_map (user_namespaces(7)).
//
// Nothing here opens a file or makes a system call. Its subpackages act:
//
//	subid   which subordinate ids the user owns
//	spawn   new namespaces, with their id maps written
//	join    namespaces that exist already
//	rtnl    interfaces, addresses and routes through a passed descriptor
//	fdpass  descriptors between our processes
//
// A map is refused rather than repaired: overlap, a range of no ids and a range
// that runs past the last id are errors, because a map that differs from what its
// author meant gives files to the wrong owner.
package userns

// MaxLines is how many ranges one map may have (user_namespaces(7): 340 since
// Linux 4.15).
const MaxLines = 340

// Range maps Count consecutive ids, the first being Inside in the namespace and
// Outside in its parent.
type Range struct {
	Inside  uint32
	Outside uint32
	Count   uint32
}

// Map is a whole uid_map or gid_map: up to MaxLines ranges that overlap neither
// inside nor outside. The order is kept.
type Map []Range
