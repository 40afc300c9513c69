//! The host's silicon: runs code with every general register and the flags loaded, until it traps.
//!
//! Whatever ends the code raises a signal; its handler takes the registers from the signal's context and resumes
//! in [`resume`]. So RSP may have any value, and a breakpoint and a fault are observed in the same way.

use super::layout::{CODE, CODE_LEN, DATA, DATA_LEN, READ_ONLY};
use super::mode::{DATA_SELECTOR, Mode};
use super::state::{Outcome, Registers};
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ptr;
use vmcs12::arch::{event::vector, rflags};

/// What the handler and the entry share. One test runs at a time: see [`Host::new`].
#[repr(C)]
struct Shared {
    stack_pointer: u64,
    /// A far pointer: 32 bits of offset, 16 of selector.
    target: u64,
    own_fs: u64,
    seen_fs: u64,
    armed: bool,
    outcome: Outcome,
}

struct Global(UnsafeCell<Shared>);
// SAFETY: only the thread that holds the one `Host` touches it.
unsafe impl Sync for Global {}

static SHARED: Global = Global(UnsafeCell::new(Shared {
    stack_pointer: 0,
    target: 0,
    own_fs: 0,
    seen_fs: 0,
    armed: false,
    outcome: Outcome::NONE,
}));

/// Loads everything and jumps to `Shared::target`.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(registers: *const Registers) {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {shared}], rsp",
        "push qword ptr [rdi + 128]",
        "popfq",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rsp, [rdi + 32]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "jmp fword ptr [rip + {shared} + 8]",
        shared = sym SHARED,
    )
}

/// Where the handler resumes: returns from [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn resume() {
    naked_asm!("pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret")
}

/// The handler proper runs with AC clear and with the thread's own FS base, whatever the code left.
#[unsafe(naked)]
unsafe extern "C" fn on_signal_with_fsgsbase() {
    naked_asm!(
        "pushfq",
        "and qword ptr [rsp], -0x40001",
        "popfq",
        "rdfsbase rax",
        "mov [rip + {shared} + 24], rax",
        "mov rax, [rip + {shared} + 16]",
        "wrfsbase rax",
        "jmp {body}",
        shared = sym SHARED,
        body = sym on_signal,
    )
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler; the interrupted code is not Rust's.
    let (shared, gregs) =
        unsafe { (&mut *SHARED.0.get(), &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    if !shared.armed {
        // A fault of the test's own: let it end the process.
        // SAFETY: restores the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    shared.armed = false;
    let outcome = &mut shared.outcome;
    for (register, greg) in outcome.registers.gpr.iter_mut().zip(GREGS) {
        *register = gregs[greg as usize] as u64;
    }
    outcome.registers.rflags = gregs[libc::REG_EFL as usize] as u64 & !rflags::RF;
    outcome.vector = gregs[libc::REG_TRAPNO as usize] as u8;
    // INT3 and INTO are traps, of one byte.
    let trap = matches!(outcome.vector, vector::BP | vector::OF);
    outcome.rip = gregs[libc::REG_RIP as usize] as u64 - u64::from(trap);
    outcome.error_code = gregs[libc::REG_ERR as usize] as u32;
    outcome.address = if outcome.vector == vector::PF { gregs[libc::REG_CR2 as usize] as u64 } else { 0 };
    outcome.fs_base = shared.seen_fs;
    let selectors = &mut gregs[libc::REG_CSGSFS as usize];
    *selectors = *selectors & !0xffff | i64::from(Mode::Bits64.code_selector());
    gregs[libc::REG_RIP as usize] = resume as *const () as i64;
    gregs[libc::REG_RSP as usize] = shared.stack_pointer as i64;
    gregs[libc::REG_EFL as usize] = (rflags::FIXED | rflags::IF) as i64;
}

/// The context's general registers in the order of the architecture.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The host, with the code and data pages at their fixed addresses.
pub struct Host {
    /// May user code read and write FS.base and GS.base?
    pub fsgsbase: bool,
}

fn map(at: u64, len: usize, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: a fresh mapping; NOREPLACE refuses where there is one.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_eq!(got as u64, at, "the window's addresses are taken");
}

impl Host {
    /// Maps the window and takes the signals. Only one may exist in a process.
    pub fn new() -> Self {
        use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
        map(CODE, CODE_LEN, PROT_READ | PROT_WRITE | PROT_EXEC);
        map(DATA, DATA_LEN, PROT_READ | PROT_WRITE);
        map(READ_ONLY, 4096, PROT_READ | PROT_WRITE);
        // SAFETY: our own mapping; written first, so that no later write finds an untouched page.
        unsafe {
            ptr::write_bytes(READ_ONLY as *mut u8, super::layout::READ_ONLY_FILL, 4096);
            assert_eq!(libc::mprotect(READ_ONLY as *mut libc::c_void, 4096, PROT_READ), 0);
        }
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        // SAFETY: reads the auxiliary vector.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
        take_signals(fsgsbase);
        // SAFETY: the kernel's flat user data segment; 64-bit code does not look at DS and ES.
        unsafe {
            std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) DATA_SELECTOR, options(nostack, preserves_flags));
        }
        Self { fsgsbase }
    }

    /// The FS base that host code runs with.
    pub fn fs_base(&self) -> u64 {
        let mut base = 0u64;
        const ARCH_GET_FS: libc::c_int = 0x1003;
        // SAFETY: arch_prctl writes one u64.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &mut base) };
        base
    }

    /// The data pages.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN) }
    }

    /// The code pages.
    pub fn code(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new`; nothing runs there while this is borrowed.
        unsafe { std::slice::from_raw_parts_mut(CODE as *mut u8, CODE_LEN) }
    }

    /// Runs the code at `rip` until it traps.
    pub fn run(&mut self, mode: Mode, registers: &Registers, rip: u64, gs_base: u64) -> Outcome {
        set_gs(gs_base);
        let own_fs = self.fs_base_fast();
        // SAFETY: no handler is armed, so nobody else has the cell.
        let shared = unsafe { &mut *SHARED.0.get() };
        shared.target = rip | u64::from(mode.code_selector()) << 32;
        (shared.own_fs, shared.seen_fs) = (own_fs, own_fs);
        shared.armed = true;
        // SAFETY: the code at `rip` ends in a trap, after which `resume` returns with all that the ABI preserves.
        unsafe { enter(registers) };
        // SAFETY: the handler has disarmed itself.
        let mut outcome = unsafe { (*SHARED.0.get()).outcome };
        outcome.gs_base = self.gs_base();
        outcome
    }

    fn fs_base_fast(&self) -> u64 {
        if !self.fsgsbase {
            return self.fs_base();
        }
        let base;
        // SAFETY: the kernel has enabled FSGSBASE.
        unsafe { std::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        base
    }

    fn gs_base(&self) -> u64 {
        if !self.fsgsbase {
            return GS_SET.load(std::sync::atomic::Ordering::Relaxed);
        }
        let base;
        // SAFETY: the kernel has enabled FSGSBASE.
        unsafe { std::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        GS_SET.store(base, std::sync::atomic::Ordering::Relaxed);
        base
    }
}

static GS_SET: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn set_gs(base: u64) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    if GS_SET.swap(base, std::sync::atomic::Ordering::Relaxed) != base {
        // SAFETY: nothing in a 64-bit Linux process uses GS.
        assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) }, 0);
    }
}

fn take_signals(fsgsbase: bool) {
    const STACK: usize = 1 << 16;
    let handler = if fsgsbase { on_signal_with_fsgsbase as *const () } else { on_signal as *const () };
    // SAFETY: all-zero is a valid sigaction; the alternate stack lives as long as the process; the handler touches
    // its context and `SHARED` only.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: Box::leak(vec![0u8; STACK].into_boxed_slice()).as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: STACK,
        };
        assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS] {
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        }
    }
}
