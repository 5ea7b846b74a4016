package rootlesskitcli

// Help is what --help prints. Scripts look for flags in it, word by word
// (dockerd-rootless.sh: grep -qw -- --detach-netns), and for drivers.
const Help = `NAME:
   rootlesskit - Linux-native fakeroot using user namespaces, with postern's network

USAGE:
   rootlesskit [global options] [arguments...]

DESCRIPTION:
   postern in the place of RootlessKit: a command in new user and mount namespaces, as
   root of them, and if asked for in a network of its own, which postern's engine
   serves whatever program --net names. Published ports can be listed and changed with
   rootlessctl and with postern ports.

   Examples:
     # spawn a shell with a new user namespace and a mount namespace
     rootlesskit bash

     # make /etc writable
     rootlesskit --copy-up=/etc bash

     # a network, and its port 80 as port 8080 of this host
     rootlesskit --copy-up=/etc --net=postern --disable-host-loopback --port-driver=builtin -p 127.0.0.1:8080:80/tcp bash

OPTIONS:
  Misc:
    --debug                                debug mode (default: false)
    --print-semver value                   print a version component as a decimal integer [major, minor, patch]
    --help, -h                             show help
    --version, -v                          print the version

  Mount:
    --copy-up value [ --copy-up value ]    mount a filesystem and copy-up the contents. e.g. "--copy-up=/etc" (typically required for non-host network)
    --copy-up-mode value                   copy-up mode [tmpfs+symlink] (default: "tmpfs+symlink")
    --propagation value                    mount propagation [rprivate, rslave] (default: "rprivate")

  Network:
    --net value                            network driver [host, none, postern; slirp4netns, pasta, vpnkit, gvisor-tap-vsock (all served by postern)] (default: "host")
    --mtu value                            MTU for non-host network (default: 65520)
    --cidr value                           CIDR for non-host network (default: 10.0.2.0/24)
    --ifname value                         network interface name (default: tap0)
    --disable-host-loopback                prohibit connecting to 127.0.0.1:* on the host namespace, which else is the gateway's address (default: false)
    --ipv6                                 enable IPv6 routing. Unrelated to port forwarding. (default: false)
    --detach-netns                         leave the command in the host's network; the new one is $ROOTLESSKIT_STATE_DIR/netns (default: false)

  Network [of other programs, accepted and without effect]:
    --pasta-binary value                   (default: "pasta")
    --pesto-binary value                   (default: "pesto")
    --slirp4netns-binary value             (default: "slirp4netns")
    --slirp4netns-sandbox value            [auto, true, false] the engine is always confined (default: "false")
    --slirp4netns-seccomp value            [auto, true, false] the engine is always confined (default: "false")
    --vpnkit-binary value                  (default: "vpnkit")
    --lxc-user-nic-binary value
    --lxc-user-nic-bridge value            (default: "lxcbr0")

  Port:
    --port-driver value                    port driver for non-host network [none, implicit (for pasta, postern), builtin; slirp4netns, gvisor-tap-vsock, pesto (all served by postern)] (default: "none")
    --publish value, -p value              publish ports. e.g. "127.0.0.1:8080:80/tcp"; without an address (":8080:80/tcp") on all addresses of this host
    --source-ip-transparent                servers see the client's address, always (default: true)
    --source-ip-transparent-backend value  [auto, nft, iptables] no firewall is needed (default: "auto")

  Process:
    --pidns                                create a PID namespace (default: false)
    --cgroupns                             create a cgroup namespace (default: false)
    --utsns                                create a UTS namespace (default: false)
    --ipcns                                create an IPC namespace (default: false)
    --reaper value                         enable process reaper. Requires --pidns. [auto,true,false] (default: "auto")
    --evacuate-cgroup2 value               evacuate processes into the specified subgroup. Requires --pidns and --cgroupns

  State:
    --state-dir value                      state directory (default: one below $XDG_RUNTIME_DIR/postern, which is removed in the end)

  SubID:
    --subid-source value                   the source of the subids. "dynamic" executes getsubids. "static" reads /etc/{subuid,subgid}. [auto,dynamic,static] (default: "auto")
`
