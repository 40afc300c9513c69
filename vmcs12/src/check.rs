//! The checks of VM entry, as rules. SDM Vol. 3, "VM Entries".
//!
//! A rule says what must hold. Which table it is in says what failure means: [`controls_and_host`] ends in VMfail,
//! [`guest()`] in exit reason 33, [`msr_area`] in exit reason 34.

pub mod controls;
mod expectation;
pub mod guest;
pub mod host;
pub mod msr_area;
mod segments;

use crate::arch::cr::{cr0, cr4};
use crate::arch::event::InjectedEvent;
use crate::arch::rflags;
use crate::caps::Capabilities;
use crate::control::*;
use crate::error::InstructionError;
use crate::field::{AnyField, Field, Value, Vmcs, table::*};
pub use expectation::Expectation;

/// One check of VM entry.
#[derive(Debug)]
pub struct Rule {
    /// Stable name.
    pub id: &'static str,
    /// The fields read; the expectation speaks of the first.
    pub fields: &'static [AnyField],
    /// What must hold.
    pub sentence: &'static str,
    /// What must hold, for the processor.
    pub expectation: Expectation,
}

/// Rules that share a condition.
#[derive(Debug)]
pub struct Group {
    /// The section of the manual: SDM Vol. 3, "VM Entries".
    pub sdm_title: &'static str,
    /// The rules apply while this holds.
    pub when: When,
    /// Exit qualification of the entry failure; 0 where a broken rule is no entry failure.
    pub qualification: u64,
    /// In the manual's order.
    pub rules: &'static [Rule],
}

/// When a group's rules apply.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Always.
    Always,
    /// While a control is 1 and in force.
    Has(Control),
    /// While a condition holds.
    Test(fn(&Ctx) -> bool),
}

/// Groups in the manual's order, as data and as code.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The groups.
    pub groups: &'static [Group],
    /// The same rules, each one compiled in place: a loop over [`Table::groups`] with its calls through pointers takes
    /// several times as long.
    first_broken: fn(&Ctx) -> Option<(&'static Group, &'static Rule)>,
}

/// Declares a [`Table`]: `group(title, when, [rule(id, fields, sentence, expectation), …], qualification)`.
macro_rules! rules {
    ($(#[$meta:meta])* pub const $name:ident = [$(
        group($title:expr, $when:expr, [$(
            rule($id:expr, $fields:expr, $sentence:expr, $expectation:expr)
        ),* $(,)?] $(, $qualification:expr)?)
    ),* $(,)?];) => {
        $(#[$meta])*
        pub const $name: $crate::check::Table = {
            use $crate::check::{Group, Rule, Table};
            const GROUPS: &[Group] = &[$(Group {
                sdm_title: $title,
                when: $when,
                qualification: 0 $(+ $qualification)?,
                rules: &[$(Rule { id: $id, fields: $fields, sentence: $sentence, expectation: $expectation }),*],
            }),*];
            Table { groups: GROUPS, first_broken: |ctx| {
                let mut broken = (0, 0);
                $({
                    if $crate::check::When::applies(&const { $when }, ctx) {
                        $({
                            const FIELD: $crate::field::AnyField = { const FIELDS: &[$crate::field::AnyField] = $fields; FIELDS[0] };
                            if !$crate::check::Expectation::holds(&const { $expectation }, ctx.vmcs.raw(FIELD), ctx) {
                                let group = &GROUPS[broken.0];
                                return Some((group, &group.rules[broken.1]));
                            }
                            broken.1 += 1;
                        })*
                    }
                    broken = (broken.0 + 1, 0);
                })*
                let _ = broken;
                None
            } }
        };
    };
}
pub(crate) use rules;

impl Group {
    fn broken<'a>(&'static self, ctx: &'a Ctx) -> impl Iterator<Item = &'static Rule> + 'a {
        let rules = if self.when.applies(ctx) { self.rules } else { &[] };
        rules.iter().filter(|rule| !rule.holds(ctx))
    }
}

impl When {
    #[inline(always)]
    fn applies(&self, ctx: &Ctx) -> bool {
        match self {
            Self::Always => true,
            Self::Has(control) => ctx.vmcs.has(*control),
            Self::Test(test) => test(ctx),
        }
    }
}

impl Rule {
    /// Does the VMCS keep the rule? The condition of its group is not asked.
    #[inline(always)]
    pub fn holds(&self, ctx: &Ctx) -> bool {
        self.expectation.holds(ctx.vmcs.raw(self.fields[0]), ctx)
    }
}

/// The processor that executes VMLAUNCH or VMRESUME, as far as the checks depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Entrant {
    /// IA32_EFER.LMA.
    pub long_mode: bool,
    /// The current-VMCS pointer.
    pub current_vmcs: u64,
}

/// What the rules read of memory: copied once, before the first rule.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Byte 80H of the virtual-APIC page.
    vtpr: u8,
    /// The first dword of the VMCS that the link pointer names.
    linked_revision: u32,
    /// The page-directory-pointer-table entries at CR3, for PAE paging without EPT.
    pdptes: [u64; 4],
}

/// A VMCS about to be entered, and what its fields are checked against.
pub struct Ctx<'a> {
    /// The VMCS.
    pub vmcs: &'a Vmcs,
    /// What the processor may do.
    pub caps: &'a Capabilities,
    entrant: Entrant,
    memory: Memory,
}

/// VMCS_LINK_POINTER when there is no linked VMCS.
pub const NO_LINK: u64 = u64::MAX;
/// Offset of VTPR in the virtual-APIC page. SDM Vol. 3, "Virtualized APIC Registers".
const VTPR: u64 = 0x80;
/// The address bits of CR3 with PAE paging. SDM Vol. 3, "PDPTE Registers".
const PAE_CR3: u64 = 0xffff_ffe0;

impl<'a> Ctx<'a> {
    /// Prepares the checks; `read` copies bytes at a physical address, for the rules that look at memory. It is asked
    /// only for addresses that are within the physical-address width.
    pub fn new(
        vmcs: &'a Vmcs,
        caps: &'a Capabilities,
        entrant: Entrant,
        read: impl FnMut(u64, &mut [u8]),
    ) -> Self {
        let mut ctx = Self { vmcs, caps, entrant, memory: Memory::default() };
        ctx.memory = ctx.read_memory(read);
        ctx
    }

    fn read_memory(&self, mut read: impl FnMut(u64, &mut [u8])) -> Memory {
        let mut memory = Memory::default();
        let page = self.get(VIRTUAL_APIC_ADDRESS).0;
        if self.checks_vtpr() && self.is_page(page) {
            read(page + VTPR, std::slice::from_mut(&mut memory.vtpr));
        }
        let link = self.get(VMCS_LINK_POINTER).0;
        if link != NO_LINK && self.is_page(link) {
            let mut bytes = [0; 4];
            read(link, &mut bytes);
            memory.linked_revision = u32::from_le_bytes(bytes);
        }
        if self.uses_pae_paging() && !self.has(ENABLE_EPT) {
            let mut bytes = [0; 32];
            read(self.get(GUEST_CR3) & PAE_CR3, &mut bytes);
            for (pdpte, bytes) in memory.pdptes.iter_mut().zip(bytes.as_chunks().0) {
                *pdpte = u64::from_le_bytes(*bytes);
            }
        }
        memory
    }

    fn is_page(&self, address: u64) -> bool {
        address & (self.caps.beyond_physical_width() | 0xfff) == 0
    }

    #[inline(always)]
    pub(crate) fn get<T: Value>(&self, field: Field<T>) -> T {
        self.vmcs.get(field)
    }
    #[inline(always)]
    pub(crate) fn has(&self, control: Control) -> bool {
        self.vmcs.has(control)
    }
    /// Does this address lie within the physical-address width?
    pub(crate) fn fits(&self, address: Option<u64>) -> bool {
        address.is_some_and(|address| address & self.caps.beyond_physical_width() == 0)
    }
    pub(crate) fn injected(&self) -> Option<InjectedEvent> {
        let event = self.get(INJECTED_EVENT_IDENTIFICATION);
        event.get(InjectedEvent::VALID).then_some(event)
    }
    pub(crate) fn checks_vtpr(&self) -> bool {
        self.has(USE_TPR_SHADOW)
            && !self.has(VIRTUALIZE_APIC_ACCESSES)
            && !self.has(VIRTUAL_INTERRUPT_DELIVERY)
    }
    #[inline(always)]
    pub(crate) fn is_virtual_8086(&self) -> bool {
        self.get(GUEST_RFLAGS) & rflags::VM != 0
    }
    pub(crate) fn is_protected(&self) -> bool {
        self.get(GUEST_CR0) & cr0::PE != 0
    }
    pub(crate) fn uses_pae_paging(&self) -> bool {
        self.get(GUEST_CR0) & cr0::PG != 0
            && self.get(GUEST_CR4) & cr4::PAE != 0
            && !self.has(IA_32E_MODE_GUEST)
    }
}

/// The checks whose failure is VMfailValid(7): SDM Vol. 3, "Checks on VMX Controls".
pub const CONTROLS: &[Table] = &[controls::EXECUTION, controls::EXIT, controls::ENTRY];
/// The checks whose failure is VMfailValid(8): SDM Vol. 3, "Checks on the Host-State Area".
pub const HOST: &[Table] = &[host::REGISTERS, host::SEGMENTS, host::ADDRESS_SPACE];
/// The checks whose failure is an exit with reason 33: SDM Vol. 3, "Checks on the Guest State Area".
#[rustfmt::skip]
pub const GUEST: &[Table] = &[
    guest::REGISTERS,
    segments::SELECTORS_AND_BASES,
    segments::CS, segments::CS_PRESENT, segments::SS, segments::SS_PRESENT,
    segments::DS, segments::DS_PRESENT, segments::ES, segments::ES_PRESENT,
    segments::FS, segments::FS_PRESENT, segments::GS, segments::GS_PRESENT,
    segments::TR, segments::TR_PRESENT, segments::LDTR, segments::LDTR_PRESENT,
    guest::RIP_RFLAGS, guest::NON_REGISTER, guest::PDPTES,
];

/// The first rule broken, with its group.
pub fn first_broken(tables: &[Table], ctx: &Ctx) -> Option<(&'static Group, &'static Rule)> {
    tables.iter().find_map(|table| (table.first_broken)(ctx))
}

/// All rules broken, with their groups.
pub fn all_broken<'a>(
    tables: &'a [Table],
    ctx: &'a Ctx,
) -> impl Iterator<Item = (&'static Group, &'static Rule)> + 'a {
    tables
        .iter()
        .flat_map(|table| table.groups)
        .flat_map(|group| group.broken(ctx).map(move |rule| (group, rule)))
}

/// VM entry fails as an instruction: VMfailValid.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// 7 or 8.
    pub error: InstructionError,
    /// The first rule broken.
    pub rule: &'static Rule,
}

/// VM entry fails as an exit: reason 33.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Exit qualification. SDM Vol. 3, "VM-Entry Failures During or After Loading Guest State".
    pub qualification: u64,
    /// The first rule broken.
    pub rule: &'static Rule,
}

/// Checks on VMX controls and the host-state area: they leave no trace.
///
/// # Errors
/// The VM-instruction error, and the first rule broken.
pub fn controls_and_host(ctx: &Ctx) -> Result<(), Refusal> {
    let refuse = |error| move |(_, rule)| Refusal { error, rule };
    let broken = first_broken(CONTROLS, ctx)
        .map(refuse(InstructionError::EntryInvalidControls))
        .or_else(|| first_broken(HOST, ctx).map(refuse(InstructionError::EntryInvalidHostState)));
    broken.map_or(Ok(()), Err)
}

/// Checks on the guest-state area.
///
/// # Errors
/// The exit qualification, and the first rule broken.
pub fn guest(ctx: &Ctx) -> Result<(), Failure> {
    let fail = |(group, rule): (&Group, _)| Failure { qualification: group.qualification, rule };
    first_broken(GUEST, ctx).map(fail).map_or(Ok(()), Err)
}
