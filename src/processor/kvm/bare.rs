//! A small VM in long mode without interrupt controllers or devices, for payloads of a few instructions.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};
use vmcs12::arch::segment::{AccessRights, Segment};
use vmcs12::arch::{cr, efer};

use super::error::KvmError;
use super::host;
use super::registers::segment;
use super::vcpu::{Exit, Vcpu};
use super::vm::{Ram, Vm};

/// Where payloads are loaded.
const CODE: u64 = 0x1_0000;
/// The largest payload.
const MOST_CODE: usize = 0x1000;
/// The page tables: one PML4 page, one page-directory-pointer page, one page directory, which maps 1 GiB.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
/// From here up a payload finds RAM that nothing has touched yet.
pub const UNTOUCHED: u64 = 16 << 20;
/// The most RAM that the page tables map.
pub const MOST_RAM: u64 = 1 << 30;

/// Page-table entry bits: present and writable; and of a directory entry, that it maps 2 MiB.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Flat 64-bit code and data segments, as rights of the VMCS format.
#[rustfmt::skip]
const CODE_SEGMENT: Segment = Segment { base: 0, limit: 0xffff_ffff, selector: 8,  rights: AccessRights(0xa09b) };
#[rustfmt::skip]
const DATA_SEGMENT: Segment = Segment { base: 0, limit: 0xffff_ffff, selector: 16, rights: AccessRights(0xc093) };

/// A VM with one vCPU in 64-bit mode at CPL 0, RAM mapped one to one, interrupts off and no IDT: an exception is a
/// triple fault.
pub struct Bare {
    // Before the VM: the last to go is the memory.
    vcpu: Vcpu,
    vm: Vm,
}

/// A payload's first registers; the others are zero.
#[derive(Clone, Copy, Default, Debug)]
pub struct Arguments {
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
}

/// How a payload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// `on_exit` wanted no more of it.
    Stopped,
    /// It raised an exception.
    TripleFault,
}

impl Bare {
    /// A VM with `bytes` of RAM, a multiple of 4 KiB and at most [`MOST_RAM`].
    ///
    /// # Errors
    /// What KVM or the host refuses.
    ///
    /// # Panics
    /// The size is not as above.
    pub fn new(kvm: &Kvm, bytes: u64) -> Result<Self, KvmError> {
        assert!(bytes.is_multiple_of(4096) && (CODE + MOST_CODE as u64..=MOST_RAM).contains(&bytes));
        host::require(kvm, host::FOR_ANY_VM)?;
        let vm = Vm::new(kvm, Arc::new(Ram::new(&[(0, bytes)])?))?;
        write_page_tables(&vm);
        let vcpu = vm.vcpu(0, vm.cpuid())?;
        Ok(Self { vcpu, vm })
    }

    /// Runs `code` until `on_exit`, which is asked at each exit to user space, breaks.
    ///
    /// # Errors
    /// KVM cannot go on.
    ///
    /// # Panics
    /// The code is longer than a page.
    pub fn run(
        &mut self,
        code: &[u8],
        arguments: Arguments,
        mut on_exit: impl FnMut(Exit<'_>) -> ControlFlow<()>,
    ) -> Result<Ended, KvmError> {
        assert!(code.len() <= MOST_CODE, "a payload has at most {MOST_CODE} bytes");
        write(&self.vm, CODE, code);
        let regs =
            kvm_regs { rip: CODE, rdi: arguments.rdi, rsi: arguments.rsi, rflags: 2, ..Default::default() };
        self.vcpu.set_registers(&regs, long_mode)?;
        loop {
            match self.vcpu.run()? {
                Exit::Shutdown => return Ok(Ended::TripleFault),
                exit => {
                    if on_exit(exit).is_break() {
                        return Ok(Ended::Stopped);
                    }
                }
            }
        }
    }

    /// Keeps the host from backing RAM from [`UNTOUCHED`] up with large pages, so that each 4-KiB page is one of its
    /// own to it.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn use_small_pages(&self) -> Result<(), KvmError> {
        self.vm.ram().use_small_pages(UNTOUCHED)
    }
}

/// SDM Vol. 3, "Initializing IA-32e Mode", when it is through.
fn long_mode(sregs: &mut kvm_sregs) {
    sregs.cr0 = cr::cr0::PE | cr::cr0::ET | cr::cr0::NE | cr::cr0::WP | cr::cr0::PG;
    sregs.cr3 = PML4;
    sregs.cr4 = cr::cr4::PAE;
    sregs.efer = efer::LME | efer::LMA;
    sregs.cs = segment(CODE_SEGMENT);
    let data = segment(DATA_SEGMENT);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
}

fn write_page_tables(vm: &Vm) {
    let link = |table: u64| (table | PRESENT_WRITABLE).to_le_bytes();
    write(vm, PML4, &link(PDPT));
    write(vm, PDPT, &link(DIRECTORY));
    let directory: Vec<u8> =
        (0..512_u64).flat_map(|page| ((page << 21) | PRESENT_WRITABLE | LARGE).to_le_bytes()).collect();
    write(vm, DIRECTORY, &directory);
}

fn write(vm: &Vm, at: u64, bytes: &[u8]) {
    let memory = vm.ram().memory();
    memory.write_slice(bytes, GuestAddress(at)).expect("RAM reaches beyond code and page tables");
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use super::*;

    fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
        let mut assembler = CodeAssembler::new(64).expect("64 is a bitness");
        build(&mut assembler).expect("the operands exist");
        assembler.assemble(CODE).expect("the code is encodable")
    }

    #[test]
    fn string_output_keeps_its_width_and_string_input_its_order() {
        let Some(kvm) = host::kvm_or_skip("string_output_keeps_its_width_and_string_input_its_order") else {
            return;
        };
        let code = assemble(|a| {
            a.mov(rdi, UNTOUCHED)?;
            a.mov(edx, 0x300)?;
            a.mov(ecx, 3)?;
            a.cld()?;
            a.rep().insw()?;
            a.mov(rsi, UNTOUCHED)?;
            a.mov(ecx, 3)?;
            a.rep().outsw()?;
            a.hlt()
        });
        let mut vm = Bare::new(&kvm, UNTOUCHED + 4096).expect("a VM");
        let (mut next, mut written) = (0, Vec::new());
        let ended = vm.run(&code, Arguments::default(), |exit| {
            match exit {
                Exit::In { port: 0x300, width: 2, data } => {
                    for byte in data {
                        next += 1;
                        *byte = next;
                    }
                }
                Exit::Out { port: 0x300, width: 2, data } => written.extend_from_slice(data),
                Exit::Halt => return ControlFlow::Break(()),
                other => panic!("{other:?}"),
            }
            ControlFlow::Continue(())
        });
        assert_eq!(ended.expect("KVM goes on"), Ended::Stopped);
        assert_eq!(written, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn memory_that_is_not_ram_is_asked_for_in_user_space() {
        let Some(kvm) = host::kvm_or_skip("memory_that_is_not_ram_is_asked_for_in_user_space") else {
            return;
        };
        let code = assemble(|a| {
            a.mov(rsi, 0x3000_0000_u64)?;
            a.mov(eax, dword_ptr(rsi))?;
            a.add(eax, 1)?;
            a.mov(dword_ptr(rsi + 8), eax)?;
            a.hlt()
        });
        let mut vm = Bare::new(&kvm, UNTOUCHED).expect("a VM");
        let mut written = Vec::new();
        vm.run(&code, Arguments::default(), |exit| {
            match exit {
                Exit::MmioRead { address: 0x3000_0000, data } => data.copy_from_slice(&41_u32.to_le_bytes()),
                Exit::MmioWrite { address: 0x3000_0008, data } => written.extend_from_slice(data),
                Exit::Halt => return ControlFlow::Break(()),
                other => panic!("{other:?}"),
            }
            ControlFlow::Continue(())
        })
        .expect("KVM goes on");
        assert_eq!(written, 42_u32.to_le_bytes());
    }

    #[test]
    fn an_exception_in_a_payload_is_a_triple_fault() {
        let Some(kvm) = host::kvm_or_skip("an_exception_in_a_payload_is_a_triple_fault") else { return };
        let mut vm = Bare::new(&kvm, UNTOUCHED).expect("a VM");
        let code = assemble(|a| a.ud2());
        let ended = vm.run(&code, Arguments::default(), |exit| panic!("{exit:?}"));
        assert_eq!(ended.expect("KVM goes on"), Ended::TripleFault);
    }
}
