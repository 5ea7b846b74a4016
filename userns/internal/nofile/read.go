package nofile

import "unsafe"

func read() limit {
	var l limit
	if prlimit64 == 0 {
		return l
	}
	if _, _, errno := rawSyscall6(prlimit64, 0, resource, 0, uintptr(unsafe.Pointer(&l)), 0, 0); errno != 0 {
		return limit{}
	}
	return l
}
