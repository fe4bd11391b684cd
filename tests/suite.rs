//! Tests that count polls, drops, wakes and allocations, and compare traces of events where the
//! order is promised. The same program is a test of the host and a test kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

#[path = "suite/contexts.rs"]
mod contexts;
#[path = "suite/drops.rs"]
mod drops;
#[path = "suite/environment.rs"]
mod environment;
#[path = "suite/errors.rs"]
mod errors;
#[path = "suite/local_tasks.rs"]
mod local_tasks;
#[path = "suite/masked.rs"]
mod masked;
#[path = "suite/names.rs"]
mod names;
#[path = "suite/registers.rs"]
mod registers;
#[path = "suite/smp.rs"]
mod smp;
#[path = "suite/stack_use.rs"]
mod stack_use;
#[path = "suite/stacks.rs"]
mod stacks;
#[path = "suite/static_tasks.rs"]
mod static_tasks;
#[path = "suite/staying.rs"]
mod staying;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/task_locals.rs"]
mod task_locals;
#[path = "suite/tasks.rs"]
mod tasks;
#[path = "suite/time.rs"]
mod time;
#[cfg(target_os = "none")]
#[path = "suite/users.rs"]
mod users;
#[path = "suite/wrappers.rs"]
mod wrappers;

hal_shim::entry!(unsafe program);

/// Makes a list of functions and their names.
macro_rules! tests {
    ($($(#[$when:meta])* $module:ident :: $name:ident,)*) => {
        &[$(
            $(#[$when])*
            (concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())
        ),*]
    };
}

fn program() {
    let everywhere: &[hal_shim::test::Test] = tests![
        tasks::spawned_task_is_polled_dropped_and_freed_once,
        tasks::memory_of_finished_tasks_is_kept_for_new_ones,
        tasks::tasks_run_in_the_order_of_their_wakes,
        tasks::wake_during_the_poll_polls_again,
        tasks::many_wakes_make_one_poll,
        tasks::wake_after_completion_does_nothing,
        tasks::waker_may_outlive_task_and_runtime,
        tasks::last_waker_dropped_in_an_interrupt_frees_nothing_there,
        tasks::join_gives_the_output,
        tasks::output_of_a_detached_task_is_dropped,
        tasks::output_nobody_took_is_dropped_with_the_handle,
        tasks::abort_of_a_queued_task,
        tasks::abort_before_the_runtime_is_entered,
        tasks::abort_of_a_blocked_task,
        tasks::abort_of_itself,
        tasks::abort_of_a_finished_task,
        tasks::join_handle_polled_by_one_task_after_another,
        tasks::join_handle_polled_by_two_tasks_in_turn,
        tasks::a_task_that_wakes_itself_starves_nobody,
        tasks::current_names_the_task,
        tasks::run_until_leaves_the_others_where_they_are,
        tasks::run_until_may_borrow,
        tasks::wake_in_an_interrupt,
        tasks::a_yield_lets_those_go_first_that_an_interrupt_woke,
        tasks::a_task_spawned_after_an_interrupts_wake_runs,
        static_tasks::spawned_again_and_again_without_an_allocation,
        static_tasks::spawned_twice_gives_the_future_back,
        static_tasks::in_use_until_the_last_reference_is_gone,
        static_tasks::last_waker_dropped_in_an_interrupt_gives_the_cell_back,
        static_tasks::spawned_in_an_interrupt,
        static_tasks::an_async_function_with_arguments,
        static_tasks::a_smaller_future_fits,
        static_tasks::alignment_is_kept,
        static_tasks::after_a_shutdown_the_future_comes_back,
        static_tasks::a_shutdown_gives_the_cell_back,
        static_tasks::an_abandoned_task_keeps_its_cell,
        static_tasks::stackful_in_a_cell_is_one_task,
        static_tasks::local_in_a_cell,
        static_tasks::from_another_core,
        local_tasks::what_is_not_send_is_shared,
        local_tasks::output_that_is_not_send,
        local_tasks::no_spawner_outside_of_plain_tasks,
        local_tasks::a_spawner_that_left_its_runtime_refuses,
        local_tasks::a_local_wrapper_around_stackful_stays_off_the_stack,
        local_tasks::a_shutdown_drops_it_on_its_core,
        local_tasks::handle_and_waker_on_another_core,
        names::handle_and_task_know_the_name,
        names::a_name_costs_two_words,
        names::a_named_stackful_future_is_one_task,
        task_locals::a_value_is_found_in_its_scope_alone,
        task_locals::scopes_nest,
        task_locals::a_drop_is_in_the_scope,
        task_locals::a_scope_allocates_nothing,
        task_locals::each_hog_keeps_its_own_over_preemption,
        task_locals::block_on_keeps_it_and_may_be_in_the_middle_of_a_use,
        task_locals::children_inherit_hooks_and_no_values,
        task_locals::an_interrupt_finds_none_if_it_is_known_to_be_one,
        stacks::hog_is_preempted,
        stacks::hogs_take_turns,
        stacks::slice_of_a_hog_is_kept,
        stacks::interrupts_wake_preempts_at_once,
        stacks::timer_preempts_at_once,
        stacks::own_wake_preempts_nobody,
        stacks::wake_while_preempted_is_kept,
        stacks::timeout_around_a_hog,
        stacks::select_beside_block_on_loses_nothing,
        stacks::abort_in_mid_poll_ends_with_the_poll,
        stacks::ten_thousand_blocked_tasks_hold_no_stack,
        stacks::exhausted_pool_makes_tasks_wait_and_reports,
        stacks::tasks_that_compute_stall_others_and_it_is_told,
        stacks::a_stall_is_told_again_and_not_too_often,
        stacks::a_waiter_that_is_aborted_is_counted_no_more,
        stacks::idle_stacks_beyond_the_limit_are_freed,
        stacks::trim_frees_what_is_idle,
        stacks::trim_does_nothing_on_another_runtimes_stack_or_in_an_interrupt,
        stacks::the_min_stack_is_enough,
        stacks::a_hog_has_a_share_among_busy_plain_tasks,
        stacks::a_hog_has_its_share_among_stackful_tasks,
        stacks::a_hog_gets_on_beside_short_sleeps,
        stacks::what_was_woken_goes_before_what_yields,
        stacks::what_is_due_at_once_runs_before_a_hog,
        stacks::preempted_task_gets_its_turn_among_stackful_ones,
        stacks::a_bounded_number_of_polls_is_between_a_task_and_its_turn,
        stacks::sleep_in_a_stackful_task_is_its_only_alarm,
        stacks::guard_owes_the_slice,
        stacks::hog_that_is_full_of_guards_is_preempted,
        stacks::shortest_slices_get_on,
        stacks::nested_block_on_outside_of_tasks_gives_wakes_back,
        stacks::a_stall_can_be_ended_by_its_report,
        stacks::an_aborted_waiter_does_not_keep_the_next_from_its_stack,
        stacks::stackful_inside_of_stackful,
        stacks::dropped_parent_aborts_its_child,
        stacks::wakes_from_stacks_arrive,
        stacks::block_on_outside_of_tasks_parks,
        staying::tasks_that_wake_each_other_share_a_stack,
        staying::what_a_stackful_task_wakes_comes_in_the_usual_order,
        staying::a_pool_of_one_serves_all,
        staying::held_and_free_tasks_alternate,
        staying::user_code_of_the_loop_runs_at_home,
        staying::plain_tasks_are_polled_at_home,
        staying::an_interrupt_for_what_the_task_has_woken_preempts_it,
        staying::a_wake_of_ones_own_is_a_yield,
        staying::what_is_aborted_in_the_queue_is_dropped_on_a_stack,
        staying::aborts_in_a_row_need_one_stack_and_no_more_of_it,
        drops::drops_of_stackful_tasks_are_preempted_and_may_block,
        drops::an_abort_in_a_stackful_poll_takes_effect_right_after_it,
        drops::a_finished_task_needs_no_stack_to_be_freed,
        contexts::hooks_run_around_every_poll_and_the_drop,
        contexts::hooks_run_around_the_drop_of_an_aborted_future,
        contexts::hooks_nest,
        contexts::hooks_run_around_preemption,
        contexts::hooks_run_around_block_on,
        contexts::a_stackful_child_inherits_all_hooks,
        contexts::a_task_that_is_spawned_inside_inherits_nothing,
        contexts::a_child_without_memory_does_not_leave_its_parents_hooks,
        stack_use::a_spawn_copies_its_future_once,
        stack_use::wrapping_copies_once,
        stack_use::a_child_is_spawned_with_one_copy,
        stack_use::a_join_copies_the_output_twice_at_most,
        stack_use::a_poll_copies_the_output_twice_at_most,
        stack_use::run_until_and_block_on_copy_their_future_once,
        wrappers::a_wrapper_is_polled_off_the_stack,
        wrappers::a_wrapper_among_hooks_is_polled_off_the_stack,
        wrappers::of_two_of_one_type_one_is_the_task,
        wrappers::a_race_with_what_takes_no_room_is_decided,
        wrappers::one_that_is_moved_between_polls_stays_stackful,
        masked::a_guard_that_drops_with_interrupts_masked_owes,
        masked::a_guard_in_a_handler_pays_nothing,
        masked::nothing_leaves_before_the_last_mask_is_gone,
        masked::a_runtime_is_not_entered_with_interrupts_masked,
        masked::the_raw_pair_is_a_guard,
        masked::a_point_pays_nothing_where_nothing_may,
        registers::survive_a_hundred_thousand_preemptions,
        registers::survive_a_thousand_suspensions,
        time::sleepers_wake_in_the_order_of_their_deadlines,
        time::a_sleeper_wakes_beside_a_task_that_only_yields,
        time::sleep_never_ends_early,
        time::a_sleep_that_is_over_lets_others_run,
        time::timeout_gives_the_output_or_gives_up,
        time::dropped_sleep_wakes_nobody,
        time::timer_that_comes_due_outside_fires_inside,
        time::many_sleepers,
        time::a_sleep_goes_on_in_another_runtime,
        time::a_sleep_outlives_the_runtime_that_it_began_in,
        time::a_shutdown_wakes_what_sleeps,
        time::a_sleep_that_begins_in_a_shutdown,
        smp::spawn_from_another_core,
        smp::wakes_back_and_forth,
        smp::wake_from_another_core_preempts_at_once,
        smp::parked_core_is_woken,
        environment::what_a_preempted_task_has_set_is_nobody_elses,
        smp::two_cores_cannot_enter_one_runtime,
        smp::sleep_moved_to_another_core,
        smp::sleep_moved_to_another_core_needs_the_first_no_more,
        smp::sleeps_are_moved_and_dropped_while_they_are_due,
        smp::tasks_of_two_cores_meet,
        smp::a_storm_of_all_operations,
        errors::nested_runtimes,
        errors::zero_slice_or_nearly,
        errors::stack_that_holds_no_context,
        errors::no_stacks_at_all,
        errors::memory_out_at_spawn_gives_the_future_back,
        errors::memory_out_for_a_child,
        errors::memory_out_for_a_stack_waits,
        errors::memory_out_for_a_stack_is_told,
        errors::spawn_outside_of_a_runtime,
        errors::nothing_runs_after_a_shutdown,
        errors::shutdown_inside_of_the_runtime,
        errors::a_runtime_is_neither_entered_nor_shut_down_in_an_interrupt,
        errors::shutdown_with_tasks_in_every_state,
        errors::no_such_core,
    ];
    #[cfg(target_os = "none")]
    let here: &[hal_shim::test::Test] = tests![
        environment::what_interrupted_code_has_set_is_not_the_handlers,
        #[cfg(not(target_arch = "loongarch64"))]
        environment::a_right_is_kept_by_the_task_that_leaves,
        #[cfg(target_arch = "x86_64")]
        environment::an_nmi_starts_clean_and_leaves_the_faulting_address,
        #[cfg(target_arch = "loongarch64")]
        environment::a_withdrawn_interrupt_is_nothing,
        users::first_entry_passes_arguments,
        users::faults_are_values,
        users::a_program_cannot_reach_the_kernel,
        users::a_bad_entry_or_stack_is_the_programs_fault,
        users::a_cause_that_has_no_name_is_raw,
        users::after_a_breakpoint_the_program_goes_on_behind_it,
        users::what_is_the_kernels_survives_a_program_that_overwrites_it,
        users::pages_are_checked,
        users::spaces_give_their_pages_back,
        users::a_stackful_tasks_endless_program_starves_nobody,
        users::a_plain_tasks_endless_program_starves_nobody,
        users::a_plain_tasks_own_timer_ends_its_stay,
        users::a_plain_task_whose_time_is_up_is_told_once,
        users::calls_do_not_keep_the_timer_away,
        users::the_kernel_part_is_preempted,
        users::a_program_without_interrupts_is_not_interrupted,
        users::an_interrupt_in_user_mode_is_a_value,
        users::an_interrupted_handler_is_not_left,
        users::runs_nest,
        users::traps_nest_three_deep_while_a_program_is_loaded,
        users::preemptions_meet_programs_and_kernel_parts,
        users::floating_point_costs_nothing_when_it_is_not_used,
        users::floating_point_of_one_program_is_not_anothers,
        users::registers_of_programs_survive_preemption,
        users::an_overflowed_stack_ends_its_task_only,
        users::an_interrupt_that_finds_little_stack_ends_its_task_only,
        users::a_leave_that_finds_little_stack_ends_its_task_only,
        users::programs_have_their_own_thread_pointers,
        users::who_waits_for_a_task_that_a_fault_ended_is_ended,
        users::cores_have_left_their_boot_stacks,
        users::a_large_frame_ends_its_task_only,
        users::a_wide_guard_is_below_each_stack,
        users::memory_that_comes_back_ends_a_stall,
        #[cfg(target_arch = "riscv64")]
        users::a_programs_rounding_is_not_the_kernels,
        #[cfg(target_arch = "x86_64")]
        users::a_programs_flags_are_not_the_kernels,
        #[cfg(target_arch = "x86_64")]
        users::a_program_has_no_segments_of_its_own,
        #[cfg(target_arch = "x86_64")]
        users::an_nmi_finds_the_core_where_gs_is_a_programs,
        #[cfg(target_arch = "x86_64")]
        users::nmis_meet_system_calls,
    ];
    #[cfg(not(target_os = "none"))]
    let here = &[];
    #[cfg(not(target_os = "none"))]
    let everywhere = &*selected(everywhere);
    hal_shim::test::run(&[everywhere, here])
}

/// Selects the tests whose name contains a word of the command line, as libtest does; all of them
/// without a word. `name=value` is not such a word: `hal_shim::test::run` applies `filter=`.
#[cfg(not(target_os = "none"))]
fn selected(tests: &[hal_shim::test::Test]) -> Vec<hal_shim::test::Test> {
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        // libtest's options change nothing here. The value of one must not be taken for a filter.
        if ["--skip", "--test-threads", "--format", "--color", "--logfile", "-Z"].contains(&&*word)
        {
            arguments.next();
        } else if !word.starts_with('-') && !word.contains('=') {
            words.push(word);
        }
    }
    if words.is_empty() {
        return tests.to_vec();
    }
    let mut selected = tests.to_vec();
    selected.retain(|(name, _)| words.iter().any(|word| name.contains(&**word)));
    let filtered = tests.len() - selected.len();
    if selected.is_empty() {
        println!("no test's name contains `{}`", words.join("` or `"));
    }
    println!("running {} tests, {filtered} filtered out", selected.len());
    selected
}
