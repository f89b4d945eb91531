//! All commands of mlx, one file for each: its arguments, its `run` function and the report that it shows.

mod add;
mod alert;
mod approve;
mod apptest;
mod audit;
mod baseline;
mod checkout;
mod commit;
mod completions;
mod config;
mod data;
mod demo;
mod diff;
mod doctor;
mod du;
mod evidence;
mod explain;
mod feedback;
mod follow;
mod fsck;
mod fsck_remote;
mod gc;
pub mod guard;
pub mod help;
mod init;
mod lineage;
mod log;
mod man;
mod model;
mod monitor;
mod release;
mod remote;
mod remote_gc;
mod remove;
mod rename;
mod repro;
mod request;
mod restore;
mod retrain;
mod serve;
mod show;
mod status;
mod traffic;
mod transfer;
mod unprotect;
mod version;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;

use crate::{
    cli::{Context, ui::Ui},
    error::Result,
    maintenance,
};

/// All commands. To add one, add a file, a variant, an arm of `run` and a place in the groups of `mlx
/// --help`; the compiler and a test ask for what is missing.
#[derive(Subcommand)]
pub enum Command {
    Init(init::Args),
    Add(add::Args),
    Status(status::Args),
    Checkout(checkout::Args),
    Commit(commit::Args),
    Remove(remove::Args),
    Move(rename::Args),
    Unprotect(unprotect::Args),
    Restore(restore::Args),
    Repro(repro::Args),
    Diff(diff::Args),
    Show(show::Args),
    #[command(subcommand)]
    Remote(remote::Command),
    Push(transfer::PushArgs),
    Fetch(transfer::FetchArgs),
    Pull(transfer::PullArgs),
    #[command(subcommand)]
    Config(config::Command),
    #[command(subcommand)]
    Data(data::Command),
    #[command(subcommand)]
    Model(model::Command),
    Log(log::Args),
    Lineage(lineage::Args),
    Serve(serve::Args),
    Apptest(apptest::Args),
    Approve(approve::ApproveArgs),
    Reject(approve::RejectArgs),
    Release(release::ReleaseArgs),
    Rollback(release::RollbackArgs),
    Audit(audit::Args),
    #[command(subcommand)]
    Alert(alert::Command),
    #[command(subcommand)]
    Monitor(monitor::Command),
    Retrain(retrain::Args),
    Watch(watch::Args),
    #[command(subcommand)]
    Traffic(traffic::Command),
    Feedback(feedback::Args),
    Explain(explain::Args),
    Gc(gc::Args),
    Fsck(fsck::Args),
    Du(du::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
    Help(help::Args),
    #[command(name = crate::pipeline::runner::SUBCOMMAND, hide = true)]
    Guard(guard::Args),
}

impl Command {
    /// Returns true for services, which end gracefully when they are asked to, and for the guard, which ends
    /// with the mlx that started it.
    pub fn handles_signals(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Watch(_) | Self::Guard(_))
    }

    pub fn run(&self, ctx: &Context<'_>, ui: &Ui) -> Result<ExitCode> {
        let code = match self {
            Self::Init(args) => ui.show_report(&init::run(ctx, args)?),
            Self::Add(args) => ui.show_report(&add::run(ctx, args)?),
            Self::Status(args) => ui.show_report(&status::run(ctx, args)?),
            Self::Checkout(args) if args.relink => ui.show_report(&checkout::relink(ctx, args)?),
            Self::Checkout(args) => ui.show_report(&checkout::run(ctx, args)?),
            Self::Commit(args) => ui.show_report(&commit::run(ctx, args)?),
            Self::Remove(args) => ui.show_report(&remove::run(ctx, args)?),
            Self::Move(args) => ui.show_report(&rename::run(ctx, args)?),
            Self::Unprotect(args) => ui.show_report(&unprotect::run(ctx, args)?),
            Self::Restore(args) => ui.show_report(&restore::run(ctx, args)?),
            Self::Repro(args) => ui.show_report(&repro::run(ctx, args)?),
            Self::Diff(args) => ui.show_report(&diff::run(ctx, args)?),
            Self::Show(args) => ui.show_report(&show::run(ctx, args)?),
            Self::Remote(remote::Command::Gc(args)) => ui.show_report(&remote_gc::run(ctx, args)?),
            Self::Remote(command) => ui.show_report(&remote::run(ctx, command)?),
            Self::Push(args) => ui.show_report(&transfer::push(ctx, args)?),
            Self::Fetch(args) => ui.show_report(&transfer::fetch(ctx, args)?),
            Self::Pull(args) => ui.show_report(&transfer::pull(ctx, args)?),
            Self::Config(command) => ui.show_report(&config::run(ctx, command)?),
            Self::Data(data::Command::Split(args)) => ui.show_report(&data::split(ctx, args)?),
            Self::Data(data::Command::Features(args)) => ui.show_report(&data::features(ctx, args)?),
            Self::Model(command) => model_command(ctx, ui, command)?,
            Self::Gc(args) => ui.show_report(&gc::run(ctx, args)?),
            Self::Fsck(args) if args.remote.is_given() => {
                ui.show_report(&fsck_remote::run(ctx, &args.remote, args.repair)?)
            }
            Self::Fsck(args) => ui.show_report(&fsck::run(ctx, args)?),
            Self::Du(args) => ui.show_report(&du::run(ctx, args)?),
            Self::Demo(args) => ui.show_report(&demo::run(ctx, args)?),
            Self::Doctor(args) => ui.show_report(&doctor::run(ctx, args)?),
            Self::Log(args) => ui.show_report(&log::run(ctx, args)?),
            Self::Lineage(args) => ui.show_report(&lineage::run(ctx, args)?),
            Self::Serve(args) => ui.show_report(&serve::run(ctx, args)?),
            Self::Apptest(args) => ui.show_report(&apptest::run(ctx, args)?),
            Self::Approve(args) => ui.show_report(&approve::approve(ctx, args)?),
            Self::Reject(args) => ui.show_report(&approve::reject(ctx, args)?),
            Self::Release(args) => ui.show_report(&release::release(ctx, args)?),
            Self::Rollback(args) => ui.show_report(&release::run_rollback(ctx, args)?),
            Self::Audit(args) => ui.show_report(&audit::run(ctx, args)?),
            Self::Monitor(monitor::Command::Run(args)) => ui.show_report(&monitor::run(ctx, args)?),
            Self::Monitor(monitor::Command::Accept(args)) => ui.show_report(&monitor::accept(ctx, args)?),
            Self::Retrain(args) => ui.show_report(&retrain::run(ctx, args)?),
            Self::Alert(alert::Command::List(args)) => ui.show_report(&alert::list(ctx, args)?),
            Self::Alert(alert::Command::Ack(args)) => ui.show_report(&alert::ack(ctx, args)?),
            Self::Watch(args) => ui.show_report(&watch::run(ctx, args)?),
            Self::Traffic(traffic::Command::Seal(args)) => ui.show_report(&traffic::seal(ctx, args)?),
            Self::Traffic(traffic::Command::List(args)) => ui.show_report(&traffic::list(ctx, args)?),
            Self::Feedback(args) => ui.show_report(&feedback::run(ctx, args)?),
            Self::Explain(args) => ui.show_report(&explain::run(ctx, args)?),
            Self::Completions(args) => ui.show_report(&completions::run(args)),
            Self::Man(args) => ui.show_report(&man::run(ctx, args)?),
            Self::Help(args) => ui.show_report(&help::run(args)?),
            Self::Guard(args) => guard::run(args)?,
        };
        if self.creates_references()
            && let Err(error) = ctx.repo().and_then(|it| maintenance::publish_needs(&it, ctx.progress))
        {
            ctx.progress.warn(&error.chain_text());
        }
        Ok(code)
    }

    /// True for commands that create tags or events but change no pointer. Other clones learn from the
    /// published needs what to keep; commands that change pointers publish these themselves.
    fn creates_references(&self) -> bool {
        matches!(
            self,
            Self::Release(_)
                | Self::Rollback(_)
                | Self::Monitor(_)
                | Self::Retrain(_)
                | Self::Alert(alert::Command::Ack(_))
        )
    }
}

fn model_command(ctx: &Context<'_>, ui: &Ui, command: &model::Command) -> Result<ExitCode> {
    use model::Command as Model;

    Ok(match command {
        Model::Train(args) => ui.show_report(&model::train(ctx, args)?),
        Model::Evaluate(args) => ui.show_report(&model::evaluate(ctx, args)?),
        Model::Package(args) => ui.show_report(&model::package(ctx, args)?),
        Model::Register(args) => ui.show_report(&version::register(ctx, args)?),
        Model::List { model } => ui.show_report(&version::list(ctx, model.as_deref())?),
        Model::Show { version } => ui.show_report(&version::show(ctx, version)?),
        Model::Get { version, out, remote } => {
            ui.show_report(&version::get(ctx, version, out.as_ref(), remote.as_deref())?)
        }
    })
}
