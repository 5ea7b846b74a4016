package spawn

import "unsafe"

func pointer(p *int32) unsafe.Pointer { return unsafe.Pointer(p) }
