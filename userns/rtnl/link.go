package rtnl

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Link is what a configured interface turned out to be.
type Link struct {
	Index int
	MAC   net.HardwareAddr
}

// Up sets an interface up. ENODEV when there is none by that name.
func Up(route *os.File, name string) error {
	return change(route, "set "+name+" up", name, unix.IFF_UP, nil)
}

// upMessage is the request of Up.
func upMessage(name string) *message { return changeMessage(name, unix.IFF_UP) }

func changeMessage(name string, flags uint32) *message {
	m := newMessage(unix.RTM_NEWLINK, 0, linkHeader(0, flags, flags))
	m.attrString(unix.IFLA_IFNAME, name)
	return m
}

// change sets flags of an interface and what fill appends.
func change(route *os.File, op, name string, flags uint32, fill func(*message)) error {
	m := changeMessage(name, flags)
	if fill != nil {
		fill(m)
	}
	return exchange(route, op, m, nil)
}

// Delete deletes an interface, with its peer if it has one, and returns when it is gone.
// ENODEV when there is none with that index.
func Delete(route *os.File, index int) error {
	m := newMessage(unix.RTM_DELLINK, 0, linkHeader(index, 0, 0))
	return exchange(route, fmt.Sprintf("delete interface %d", index), m, nil)
}

// Find gives an interface's index and MAC; ENODEV when there is none by that name.
func Find(route *os.File, name string) (Link, error) {
	l, err := find(route, name)
	return Link{Index: l.index, MAC: l.mac}, err
}

func find(route *os.File, name string) (link, error) {
	op := "look at " + name
	m := newMessage(unix.RTM_GETLINK, 0, linkHeader(0, 0, 0))
	m.attrString(unix.IFLA_IFNAME, name)
	var found link
	perr := errMalformed
	err := exchange(route, op, m, func(r reply) {
		if r.kind == unix.RTM_NEWLINK {
			found, perr = parseLink(r.body)
		}
	})
	if err == nil && perr != nil {
		err = fmt.Errorf("%s: %w", op, perr)
	}
	return found, err
}

// setMAC sets the hardware address. A multicast one is EADDRNOTAVAIL.
func setMAC(route *os.File, name string, mac [6]byte) error {
	return change(route, fmt.Sprintf("set address %s on %s", net.HardwareAddr(mac[:]), name), name, 0, func(m *message) {
		m.attr(unix.IFLA_ADDRESS, mac[:])
	})
}

// setMTU sets the MTU, in bytes without the Ethernet header.
func setMTU(route *os.File, name string, mtu int) error {
	return change(route, fmt.Sprintf("set mtu %d on %s", mtu, name), name, 0, func(m *message) {
		m.attrUint32(unix.IFLA_MTU, uint32(mtu))
	})
}
