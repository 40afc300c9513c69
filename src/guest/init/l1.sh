#!/bin/sh
# L1's init: makes this Linux a hypervisor and runs a Linux under it.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "testudo-milestone: l1_userspace"
read -r version < /proc/version
echo "L1: $version"

# Lets the UART send what has been written, then switches the machine off.
finish() {
    sleep 0.1
    poweroff -f
}
fail() {
    echo "testudo-failure: $1"
    finish
}

. /settings
for module in $MODULES; do
    insmod "/modules/$module.ko" || fail "insmod $module"
done
echo "testudo-milestone: kvm_loaded"
for parameter in ept unrestricted_guest vpid; do
    read -r value < "/sys/module/kvm_intel/parameters/$parameter"
    echo "L1: kvm_intel $parameter=$value"
done

if [ "$MICRO_EXITS" ]; then
    /testudo micro --exits "$MICRO_EXITS" --pages "$MICRO_PAGES" < /dev/null || fail "micro, status $?"
fi

/testudo run --processor kvm --nested off --kernel /l2/vmlinuz --initrd /l2/initrd --memory "$L2_MEMORY" \
    --cmdline "$L2_CMDLINE" --announce l2_kernel < /dev/null || fail "L2, status $?"
echo "testudo-milestone: end"
finish
