# Runs in the guest as its first process: takes commands from the host, one line each
# ("ID SECONDS"), runs the script ID.sh from the share in the background and leaves its output, errors
# and status beside it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 IN_GUEST=1
cd /
. /run/share/guest.env

hostname "$GUEST_NAME"
ip link set lo up
if [ -n "$GUEST_ADDRESS" ]; then
    for path in /sys/class/net/e*; do
        [ -e "$path" ] && ip link set "${path##*/}" up && ip addr add "$GUEST_ADDRESS" dev "${path##*/}"
    done
fi
while read -r address name; do echo "$address $name" >>/etc/hosts; done </run/share/hosts
modprobe -q configfs && mount -t configfs configfs /sys/kernel/config

for path in /sys/class/virtio-ports/*; do
    [ "$(cat "$path/name")" = udrbd.agent ] && port=/dev/${path##*/}
done
exec 3<>"$port" || echo "agent: no port to the host"
echo "READY $(uname -r)" >&3

while read -r id seconds <&3; do
    if [ "$id" = poweroff ]; then
        sync
        echo o >/proc/sysrq-trigger
        continue
    fi
    (
        base=/run/share/$id
        limit=
        [ "$seconds" -gt 0 ] && limit="timeout -k 5 $seconds"
        $limit bash "$base.sh" </dev/null >"$base.out" 2>"$base.err" 3>&-
        echo $? >"$base.rc"
        echo "DONE $id" >&3
    ) &
done
echo "agent: the host is gone"
echo o >/proc/sysrq-trigger
sleep 60
