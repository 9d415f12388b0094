#!/bin/sh
# The first process of the lab's guest: drivers, addresses, then commands from the host.
#
# Kernel arguments it knows:
#   ip=GUEST::GATEWAY:NETMASK::DEVICE:off[:DNS]   as the kernel's nfsroot.rst has it; this kernel
#                                                 has no autoconfiguration of its own
#   ip6=ADDRESS/PREFIX,GATEWAY                    on the same device
#   mtu=BYTES   dns=ADDRESS[,ADDRESS]
#
# What fails is told on the console and does not stop the boot: a test may want a broken guest.

export PATH=/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: $module is not loaded"
done < /lib/modules/order

argument() { # NAME: the last value of NAME= on the kernel's command line
    value=
    for word in $(cat /proc/cmdline); do
        case $word in "$1"=*) value=${word#*=} ;; esac
    done
    echo "$value"
}

default_route() { # FAMILY GATEWAY DEVICE: also for a gateway outside the guest's own prefix
    ip "$1" route add default via "$2" dev "$3" 2>/dev/null && return
    ip "$1" route add "$2" dev "$3" && ip "$1" route add default via "$2" dev "$3"
}

configure() {
    # Duplicate detection would hold an address back for a second that nobody here needs.
    for key in all default "$device"; do
        echo 0 > "/proc/sys/net/ipv6/conf/$key/accept_dad"
    done
    mtu=$(argument mtu)
    [ -z "$mtu" ] || ip link set "$device" mtu "$mtu"
    ip link set "$device" up

    if [ -n "$address" ]; then
        ip -4 address add "$address/${netmask:-255.255.255.255}" dev "$device"
        [ -z "$gateway" ] || default_route -4 "$gateway" "$device"
    fi
    ip6=$(argument ip6)
    if [ -n "$ip6" ]; then
        ip -6 address add "${ip6%%,*}" dev "$device"
        case $ip6 in *,?*) default_route -6 "${ip6#*,}" "$device" ;; esac
    fi
}

ip link set lo up
IFS=: read -r address _ gateway netmask _ device _ dns0 dns1 _ <<END
$(argument ip)
END
device=${device:-eth0}
[ ! -e "/sys/class/net/$device" ] || configure
for server in $(argument dns | tr , ' ') $dns0 $dns1; do
    echo "nameserver $server" >> /etc/resolv.conf
done

# The agent. A request is a line "SECONDS BASE64-OF-COMMAND"; the reply is a line "STATUS BYTES" and
# that many bytes of output. The port is no terminal, so nothing is echoed, cooked or cut.
for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" != agent ] || port=/dev/$(basename "$(dirname "$name")")
done
exec 3<> "$port"
echo ready >&3
while read -r seconds encoded <&3; do
    echo "$encoded" | base64 -d > /run/command
    timeout -s KILL "$seconds" sh /run/command < /dev/null > /run/output 2>&1
    status=$?
    head -c 4194304 /run/output > /run/reply
    echo "$status $(wc -c < /run/reply)" >&3
    cat /run/reply >&3
done
# The host's end is closed: whoever started this guest is gone.
poweroff -f
