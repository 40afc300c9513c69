//! The CPUID of a plain KVM guest: what KVM supports, with what differs between vCPUs filled in.
//! SDM Vol. 2, "CPUID—CPU Identification"; SDM Vol. 3, "Detecting Hardware Multi-Threading Support and Topology".

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::error::KvmError;

/// CPUID.1:ECX, CPUID.1:EDX and CPUID.80000001H:ECX bits that KVM leaves to its user.
mod feature {
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
    pub(super) const HTT: u32 = 1 << 28;
    pub(super) const SVM: u32 = 1 << 2;
}

/// What distinguishes a vCPU's CPUID from what KVM supports.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The vCPU's APIC id.
    pub id: u32,
    /// vCPUs of the machine: one package, a core each.
    pub count: u32,
    /// Whether the LAPIC in the kernel has the TSC-deadline mode, which KVM_GET_SUPPORTED_CPUID does not tell.
    pub tsc_deadline: TscDeadline,
}

/// Whether there is a TSC-deadline mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "two answers")]
pub enum TscDeadline {
    Yes,
    No,
}

/// The CPUID of the vCPU at `place`.
///
/// # Errors
/// It has more entries than KVM takes.
pub fn at(supported: &CpuId, place: Place) -> Result<CpuId, KvmError> {
    // The topology leaves are made anew; KVM gives those of the host's processor that it was asked on.
    let kept = supported.as_slice().iter().filter(|entry| !is_topology(entry.function));
    let mut entries: Vec<_> = kept.map(|&entry| adapted(entry, place)).collect();
    if supported.as_slice().iter().any(|entry| entry.function == EXTENDED_TOPOLOGY) {
        entries.extend([thread_level(place), core_level(place)]);
    }
    CpuId::from_entries(&entries).map_err(|_| KvmError::Request {
        request: "KVM_SET_CPUID2",
        source: std::io::ErrorKind::ArgumentListTooLong.into(),
    })
}

const EXTENDED_TOPOLOGY: u32 = 0xb;
const V2_EXTENDED_TOPOLOGY: u32 = 0x1f;

const fn is_topology(leaf: u32) -> bool {
    matches!(leaf, EXTENDED_TOPOLOGY | V2_EXTENDED_TOPOLOGY)
}

/// One entry as the vCPU shows it.
fn adapted(mut entry: kvm_cpuid_entry2, place: Place) -> kvm_cpuid_entry2 {
    let Place { id, count, .. } = place;
    match entry.function {
        0x1 => {
            let ids = count.next_power_of_two().min(255);
            entry.ebx = entry.ebx & 0xffff | ids << 16 | id << 24;
            entry.ecx = entry.ecx & !(feature::VMX | feature::TSC_DEADLINE) | feature::HYPERVISOR;
            if place.tsc_deadline == TscDeadline::Yes {
                entry.ecx |= feature::TSC_DEADLINE;
            }
            entry.edx = entry.edx & !feature::HTT | if count > 1 { feature::HTT } else { 0 };
        }
        // Intel's and AMD's cache leaves: bits 25:14 are the logical processors that share the cache, less one, bits
        // 31:26 (Intel's only) the cores of the package, less one. The third level is everybody's.
        leaf @ (0x4 | 0x8000_001d) if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            let cores = if leaf == 0x4 { (count - 1).min(63) } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
        }
        0x8000_0001 => entry.ecx &= !feature::SVM,
        // AMD: cores of the package less one, and the width of the ids.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) & 0xff | id_width(count) << 12,
        // AMD: the extended APIC id, the core with one thread, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
    entry
}

/// CPUID.0BH.0: one thread to each core.
fn thread_level(place: Place) -> kvm_cpuid_entry2 {
    const THREAD: u32 = 1 << 8;
    topology_level(0, 0, 1, THREAD, place)
}

/// CPUID.0BH.1: the cores of the package.
fn core_level(place: Place) -> kvm_cpuid_entry2 {
    const CORE: u32 = 2 << 8;
    topology_level(1, id_width(place.count), place.count, CORE, place)
}

fn topology_level(index: u32, shift: u32, processors: u32, kind: u32, place: Place) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: EXTENDED_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind | index,
        edx: place.id,
        ..Default::default()
    }
}

/// Bits of an APIC id that number the cores.
const fn id_width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
        let found = cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index));
        let found = found.unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
        [found.eax, found.ebx, found.ecx, found.edx]
    }

    fn third_of(count: u32, entries: &[kvm_cpuid_entry2]) -> CpuId {
        let supported = CpuId::from_entries(entries).expect("few entries");
        at(&supported, Place { id: 2, count, tsc_deadline: TscDeadline::Yes }).expect("few entries")
    }

    #[test]
    fn a_vcpu_shows_its_own_apic_id_and_no_virtualization() {
        let cpuid = third_of(
            4,
            &[entry(1, [0, 0xff00_0812, feature::VMX, 0]), entry(0x8000_0001, [0, 0, feature::SVM | 1, 0])],
        );
        let expected = [0, 0x0204_0812, feature::HYPERVISOR | feature::TSC_DEADLINE, feature::HTT];
        assert_eq!(leaf(&cpuid, 1, 0), expected);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0), [0, 0, 1, 0]);
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let host = [entry(0xb, [1, 2, 0x100, 77]), entry(0x1f, [1, 2, 0x100, 77])];
        let cpuid = third_of(3, &host);
        assert_eq!(leaf(&cpuid, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(leaf(&cpuid, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(cpuid.as_slice().len(), 2, "leaf 1FH, which would overrule 0BH, is gone");
    }

    #[test]
    fn the_last_cache_is_shared_and_the_others_are_private() {
        // a first-level data cache, and a third-level one
        let cpuid = third_of(3, &[entry(4, [0xfc00_4021 | 7 << 14, 0, 0, 0])]);
        assert_eq!(leaf(&cpuid, 4, 0)[0], 0x21 | 2 << 26);
        let cpuid = third_of(3, &[entry(4, [0xfc00_4063 | 7 << 14, 0, 0, 0])]);
        assert_eq!(leaf(&cpuid, 4, 0)[0], 0x63 | 2 << 14 | 2 << 26);
    }
}
