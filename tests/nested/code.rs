//! What payloads are written in: instructions, and the phrases that L1s have in common.
//!
//! R15 is where the next item of the log goes, in L1 and L2 alike. The phrases use RAX, RCX and RDX.

use crate::place;
use iced_x86::code_asm::*;
use vmcs12::control::Control;
use vmcs12::field::Field;
use vmcs12::field::table::*;

/// Assembles instructions, one after the other.
#[macro_export]
macro_rules! asm {
    ($code:expr; $($instruction:ident($($operand:expr),*));+ $(;)?) => {{
        let code: &mut $crate::code::Code = $code;
        $(code.asm.$instruction($($operand),*).expect(stringify!($instruction));)+
    }};
}

/// What the log has for a VMX instruction that succeeded.
pub const SUCCEEDED: u64 = 0;
/// What the log has for VMfailInvalid; for VMfailValid it has the error number.
pub const FAILED_INVALID: u64 = 0xf000_0000_0000_0000;
/// What the log has if no exception was raised.
pub const NO_EXCEPTION: u64 = 0xe000_0000_0000_0000;
/// What the log has when an entry took place that was to fail.
pub const ENTERED: u64 = 0xc000_0000_0000_0000;

/// What the log has for an exception in L1.
pub const fn exception(vector: u8, error_code: u32) -> u64 {
    0xe100_0000_0000_0000 | (vector as u64) << 32 | error_code as u64
}
/// What the log has for an interrupt or NMI in L1.
pub const fn interrupt(vector: u8) -> u64 {
    0xe200_0000_0000_0000 | (vector as u64) << 32
}
/// What the log has for an exception in L2, whose handler then executes VMCALL.
pub const fn exception_in_l2(vector: u8, error_code: u32) -> u64 {
    0xd100_0000_0000_0000 | (vector as u64) << 32 | error_code as u64
}
/// What the log has for an interrupt or NMI in L2.
pub const fn interrupt_in_l2(vector: u8) -> u64 {
    0xd200_0000_0000_0000 | (vector as u64) << 32
}

pub const UD: u64 = exception(6, 0);
pub const GP: u64 = exception(13, 0);

/// MSRs.
pub mod msr {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const VMX_BASIC: u32 = 0x480;
    pub const VMX_SECONDARY: u32 = 0x48b;
    pub const VMX_TRUE_PINBASED: u32 = 0x48d;
    pub const VMX_TRUE_PRIMARY: u32 = 0x48e;
    pub const VMX_TRUE_EXIT: u32 = 0x48f;
    pub const VMX_TRUE_ENTRY: u32 = 0x490;
    pub const X2APIC_EOI: u32 = 0x80b;
    pub const X2APIC_SPURIOUS: u32 = 0x80f;
    pub const X2APIC_ICR: u32 = 0x830;
    pub const X2APIC_TIMER: u32 = 0x832;
    pub const X2APIC_INITIAL_COUNT: u32 = 0x838;
    pub const X2APIC_SELF_IPI: u32 = 0x83f;
    pub const EFER: u32 = 0xc000_0080;
    pub const LSTAR: u32 = 0xc000_0082;
}

/// A payload in the making.
pub struct Code {
    pub asm: CodeAssembler,
    ends: Ends,
    launched: bool,
}

/// Where payloads end.
#[derive(Clone, Copy, Default)]
pub struct Ends {
    /// As they should.
    pub finish: u64,
    /// After an entry that did not take place, with its outcome in RAX.
    pub stranded: u64,
}

/// VMLAUNCH or VMRESUME.
#[derive(Clone, Copy)]
pub enum Entry {
    Launch,
    Resume,
}

impl Code {
    pub fn new(ends: Ends) -> Self {
        Self { asm: CodeAssembler::new(64).expect("64 bits"), ends, launched: false }
    }

    /// The bytes, for this address.
    pub fn assemble(mut self, at: u64) -> Vec<u8> {
        self.asm.assemble(at).expect("the payload assembles")
    }

    pub fn label(&mut self) -> CodeLabel {
        self.asm.create_label()
    }

    /// Sets a label here. The NOP allows for another one.
    pub fn place(&mut self, label: &mut CodeLabel) {
        self.asm.set_label(label).expect("a label is set once");
        asm!(self; nop());
    }

    /// Logs RAX.
    pub fn log_rax(&mut self) -> &mut Self {
        asm!(self; mov(qword_ptr(r15), rax); lea(r15, ptr(r15 + 8)));
        self
    }

    /// Logs a number.
    pub fn log(&mut self, value: u64) -> &mut Self {
        asm!(self; mov(rax, value));
        self.log_rax()
    }

    /// Logs the 8 bytes at an address.
    pub fn log_memory(&mut self, address: u64) -> &mut Self {
        asm!(self; mov(eax, address as u32); mov(rax, qword_ptr(rax)));
        self.log_rax()
    }

    /// Writes 8 bytes.
    pub fn store(&mut self, address: u64, value: u64) -> &mut Self {
        asm!(self; mov(ecx, address as u32); mov(rax, value); mov(qword_ptr(rcx), rax));
        self
    }

    /// Sets a bit of a bitmap.
    pub fn set_bit(&mut self, bitmap: u64, bit: u32) -> &mut Self {
        asm!(self; mov(ecx, bitmap as u32); or(byte_ptr(rcx + bit / 8), 1 << (bit % 8)));
        self
    }

    pub fn wrmsr(&mut self, index: u32, value: u64) -> &mut Self {
        asm!(self; mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32); wrmsr());
        self
    }

    /// RDMSR, with the value in RAX.
    pub fn rdmsr(&mut self, index: u32) -> &mut Self {
        asm!(self; mov(ecx, index); rdmsr(); shl(rdx, 32); mov(eax, eax); or(rax, rdx));
        self
    }

    /// VMWRITE of a number.
    pub fn write<T>(&mut self, field: Field<T>, value: u64) -> &mut Self {
        asm!(self; mov(rax, value));
        self.write_rax(field)
    }

    /// VMWRITE of RAX.
    pub fn write_rax<T>(&mut self, field: Field<T>) -> &mut Self {
        asm!(self; mov(ecx, field.row().encoding); vmwrite(rcx, rax));
        self
    }

    /// VMREAD to RAX.
    pub fn read_rax<T>(&mut self, field: Field<T>) -> &mut Self {
        asm!(self; mov(ecx, field.row().encoding); vmread(rax, rcx));
        self
    }

    /// VMREAD to the log.
    pub fn read<T>(&mut self, field: Field<T>) -> &mut Self {
        self.read_rax(field).log_rax()
    }

    /// Sets a control, whose word is in use.
    pub fn set(&mut self, control: Control) -> &mut Self {
        asm!(self; mov(ecx, control.word.field().row().encoding); vmread(rax, rcx);
            bts(rax, u32::from(control.bit)); vmwrite(rcx, rax));
        self
    }

    /// Clears a control.
    pub fn clear(&mut self, control: Control) -> &mut Self {
        asm!(self; mov(ecx, control.word.field().row().encoding); vmread(rax, rcx);
            btr(rax, u32::from(control.bit)); vmwrite(rcx, rax));
        self
    }

    /// Sets RIP of L2 behind the instruction that exited.
    pub fn skip(&mut self) -> &mut Self {
        self.read_rax(VM_EXIT_INSTRUCTION_LENGTH);
        asm!(self; mov(rdx, rax));
        self.read_rax(GUEST_RIP);
        asm!(self; add(rax, rdx));
        self.write_rax(GUEST_RIP)
    }

    /// An instruction with a pointer in memory as its operand.
    pub fn vmxon(&mut self, pointer: u64) -> &mut Self {
        self.store(place::OPERAND, pointer);
        asm!(self; vmxon(qword_ptr(place::OPERAND as u32)));
        self
    }
    pub fn vmclear(&mut self, pointer: u64) -> &mut Self {
        self.store(place::OPERAND, pointer);
        asm!(self; vmclear(qword_ptr(place::OPERAND as u32)));
        self
    }
    pub fn vmptrld(&mut self, pointer: u64) -> &mut Self {
        self.store(place::OPERAND, pointer);
        asm!(self; vmptrld(qword_ptr(place::OPERAND as u32)));
        self
    }

    /// INVEPT with this type and EPTP.
    pub fn invept(&mut self, kind: u64, eptp: u64) -> &mut Self {
        self.store(place::OPERAND, eptp).store(place::OPERAND + 8, 0);
        asm!(self; mov(eax, kind as u32); invept(rax, xmmword_ptr(place::OPERAND as u32)));
        self
    }
    /// INVVPID with this type, VPID and address.
    pub fn invvpid(&mut self, kind: u64, vpid: u64, address: u64) -> &mut Self {
        self.store(place::OPERAND, vpid).store(place::OPERAND + 8, address);
        asm!(self; mov(eax, kind as u32); invvpid(rax, xmmword_ptr(place::OPERAND as u32)));
        self
    }

    /// Logs how the VMX instruction just before ended.
    pub fn outcome(&mut self) -> &mut Self {
        let [mut invalid, mut valid, mut done] = [self.label(), self.label(), self.label()];
        asm!(self; mov(rax, SUCCEEDED); jc(invalid); jz(valid); jmp(done));
        self.place(&mut invalid);
        asm!(self; mov(rax, FAILED_INVALID); jmp(done));
        self.place(&mut valid);
        self.read_rax(VM_INSTRUCTION_ERROR);
        self.place(&mut done);
        self.log_rax()
    }

    /// Logs the exception that instructions raise, or that they raise none.
    pub fn catch(&mut self, attempt: impl FnOnce(&mut Self)) -> &mut Self {
        let mut caught = self.label();
        asm!(self; lea(rax, ptr(caught)); mov(qword_ptr(place::CATCH as u32), rax));
        attempt(self);
        self.log(NO_EXCEPTION);
        self.place(&mut caught);
        self
    }

    /// Instructions at CPL 3. The exception that they raise is the way back.
    pub fn catch_in_user_mode(&mut self, attempt: impl FnOnce(&mut Self)) -> &mut Self {
        let mut user = self.label();
        asm!(self; mov(rbp, rsp));
        self.catch(|l1| {
            asm!(l1; push(i32::from(place::USER_DATA_SELECTOR)); push(place::STACK_USER as i32); pushfq();
                push(i32::from(place::USER_CODE_SELECTOR)); lea(rax, ptr(user)); push(rax); iretq());
            l1.place(&mut user);
            attempt(l1);
        });
        asm!(self; mov(rsp, rbp));
        self
    }

    /// Enters L2 and goes on at its next exit.
    pub fn enter(&mut self) -> &mut Self {
        let entry = if self.launched { Entry::Resume } else { Entry::Launch };
        let mut landing = self.label();
        self.enter_with(entry, landing).outcome();
        let stranded = self.ends.stranded;
        asm!(self; mov(rax, stranded); jmp(rax));
        self.place(&mut landing);
        self
    }

    /// Executes VMLAUNCH or VMRESUME and logs how it ended, or that it led to an exit.
    pub fn try_enter(&mut self, entry: Entry) -> &mut Self {
        let [mut landing, mut done] = [self.label(), self.label()];
        self.enter_with(entry, landing).outcome();
        asm!(self; jmp(done));
        self.place(&mut landing);
        self.log(ENTERED);
        self.place(&mut done);
        self
    }

    fn enter_with(&mut self, entry: Entry, landing: CodeLabel) -> &mut Self {
        self.launched = true;
        asm!(self; lea(rax, ptr(landing)));
        self.write_rax(HOST_RIP);
        asm!(self; mov(rax, rsp));
        self.write_rax(HOST_RSP);
        match entry {
            Entry::Launch => asm!(self; vmlaunch()),
            Entry::Resume => asm!(self; vmresume()),
        }
        self
    }

    /// The next entry is VMLAUNCH: another VMCS is current, or VMCLEAR was executed.
    pub fn launch_next(&mut self) -> &mut Self {
        self.launched = false;
        self
    }

    /// The local APIC in x2APIC mode, with its timer set to one shot of this vector.
    pub fn enable_apic(&mut self, timer: u8) -> &mut Self {
        self.rdmsr(msr::APIC_BASE);
        asm!(self; or(eax, 0xc00); mov(rdx, rax); shr(rdx, 32); wrmsr());
        self.wrmsr(msr::X2APIC_SPURIOUS, 0x1ff).wrmsr(msr::X2APIC_TIMER, u64::from(timer))
    }

    /// Burns instructions, `turns` times two.
    pub fn spin(&mut self, turns: u32) -> &mut Self {
        let mut turn = self.label();
        asm!(self; mov(ecx, turns));
        self.place(&mut turn);
        asm!(self; dec(ecx); jnz(turn));
        self
    }

    /// Ends a chain of phrases.
    pub fn done(&mut self) {}

    /// Ends the run.
    pub fn finish(&mut self) {
        let finish = self.ends.finish;
        asm!(self; mov(rax, finish); jmp(rax));
    }
}
