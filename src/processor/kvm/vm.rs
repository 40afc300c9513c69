//! A VM of KVM's with its RAM.

use std::io;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

use super::error::KvmError;
use super::vcpu::Vcpu;

/// Three pages for KVM's own task-state segment, and one for its identity map: real mode needs them on processors
/// without unrestricted guests. They lie where a PC has its firmware.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Host addresses of RAM are congruent to guest addresses modulo this, so that both levels of translation can use
/// large pages: it saves most of the EPT violations of a boot.
const LARGE_PAGE: usize = 2 << 20;
/// More entries than any processor has; KVM returns those that exist.
const MOST_CPUID_ENTRIES: usize = 256;

/// Guest RAM: memory of this process, taken from the host page by page as the guest touches it.
pub struct Ram {
    memory: GuestMemoryMmap,
    // After `memory`, whose regions point into them.
    _mappings: Vec<Mapping>,
}

impl Ram {
    /// RAM at these guest addresses, of these sizes.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, KvmError> {
        let bytes = ranges.iter().map(|&(_, size)| size).sum();
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for &(start, size) in ranges {
            let no_room = |source| KvmError::Memory { bytes, source };
            let size = usize::try_from(size).map_err(|_| no_room(io::ErrorKind::OutOfMemory.into()))?;
            let mapping = Mapping::new(size).map_err(no_room)?;
            regions.push(mapping.region(start).map_err(no_room)?);
            mappings.push(mapping);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| KvmError::Memory { bytes, source: io::Error::other(error) })?;
        Ok(Self { memory, _mappings: mappings })
    }

    /// The RAM as loaders and devices see it.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Keeps the host from backing RAM from guest address `from` up with large pages.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn use_small_pages(&self, from: u64) -> Result<(), KvmError> {
        let refused = |source| KvmError::Request { request: "MADV_NOHUGEPAGE", source };
        for region in self.memory.iter().filter(|region| region.last_addr().0 >= from) {
            let skipped = from.saturating_sub(region.start_addr().0);
            let slice = region
                .get_slice(MemoryRegionAddress(skipped), (region.len() - skipped) as usize)
                .map_err(|error| refused(io::Error::other(error)))?;
            // SAFETY: the range is the region's own, which stays mapped and keeps its content.
            let done = unsafe {
                libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_NOHUGEPAGE)
            };
            if done != 0 {
                return Err(refused(io::Error::last_os_error()));
            }
        }
        Ok(())
    }
}

/// Anonymous memory at a multiple of [`LARGE_PAGE`].
struct Mapping {
    reserved: *mut libc::c_void,
    reserved_size: usize,
    size: usize,
}

// SAFETY: a `Mapping` owns address space, not data; all data accesses go through vm-memory's volatile operations.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of `Mapping` changes it.
unsafe impl Sync for Mapping {}

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Mapping {
    fn new(size: usize) -> io::Result<Self> {
        let reserved_size = size.checked_add(LARGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces no other.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), reserved_size, PROTECTION, FLAGS, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { reserved, reserved_size, size })
    }

    fn aligned(&self) -> *mut u8 {
        let start = self.reserved.cast::<u8>();
        start.wrapping_add(start.align_offset(LARGE_PAGE))
    }

    fn region(&self, start: u64) -> io::Result<GuestRegionMmap> {
        // SAFETY: `aligned()` is less than LARGE_PAGE after `reserved`, so all of `size` is inside the mapping, which
        // `Ram` keeps as long as the region.
        let region = unsafe { MmapRegion::build_raw(self.aligned(), self.size, PROTECTION, FLAGS) };
        GuestRegionMmap::new(region.map_err(io::Error::other)?, GuestAddress(start))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; `Ram` drops what points into it first.
        unsafe { libc::munmap(self.reserved, self.reserved_size) };
    }
}

/// A VM with RAM and no vCPU yet.
pub struct Vm {
    fd: VmFd,
    ram: Arc<Ram>,
    cpuid: CpuId,
}

impl Vm {
    /// A VM over `ram`, offering the CPUID that KVM supports.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn new(kvm: &Kvm, ram: Arc<Ram>) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::request("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP).map_err(KvmError::request("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS).map_err(KvmError::request("KVM_SET_TSS_ADDR"))?;
        let cpuid = kvm
            .get_supported_cpuid(MOST_CPUID_ENTRIES)
            .map_err(KvmError::request("KVM_GET_SUPPORTED_CPUID"))?;
        let vm = Self { fd, ram, cpuid };
        vm.map_ram()?;
        Ok(vm)
    }

    fn map_ram(&self) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(self.ram.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped as long as `ram` lives; this VM holds it, and so does each vCPU, through
            // which alone the guest can run.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(KvmError::request("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// A vCPU with this number, which is also its APIC id.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn vcpu(&self, id: u32, cpuid: &CpuId) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(id.into()).map_err(KvmError::request("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(cpuid).map_err(KvmError::request("KVM_SET_CPUID2"))?;
        Ok(Vcpu::new(fd, self.ram.clone()))
    }

    /// The CPUID that KVM supports.
    #[must_use]
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// The VM's own requests.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The guest's RAM.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
}
