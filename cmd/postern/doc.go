// Command postern gives a container a network without anyone becoming root.
//
// The package reads the command line and wires the other packages together; it
// holds no mechanism. Each command has a file. What the command line promises
// (names of flags, defaults, exit codes) is a contract that scripts depend on.
//
// Exit codes: the command's own, 128 and the signal's number when a signal ended
// it; 125 when postern failed, 126 and 127 when the command could not be executed
// or found; 2 for bad usage. Every error is one line that begins with "postern: ". A
// personality (personality.go) has the codes of the program whose name it has.
package main
