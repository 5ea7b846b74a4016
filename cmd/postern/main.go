package main

import (
	"context"
	"os"
	"runtime"
)

func init() { runtime.LockOSThread() } // see roles.go

func main() {
	if role := roleOf(os.Args); role != nil {
		os.Exit(role())
	}
	os.Exit(run(context.Background(), asCalled(os.Args), os.Environ(), stdio{os.Stdin, os.Stdout, os.Stderr}))
}
