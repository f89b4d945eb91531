//! `mlx monitor accept`: days that become the new normal.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{approve::in_force, reference},
    },
    error::{Error, Kind, Result},
    ledger::{self, Draft, Published},
    monitor::Thresholds,
    policy::{FILE, Policy},
    time::Day,
    traffic,
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct AcceptArgs {
    /// The first of the days
    #[arg(long)]
    from: Day,
    /// The last of the days
    #[arg(long)]
    to: Day,
    /// Where the model serves
    #[arg(long, default_value = "production")]
    env: String,
    /// Who you are, as the policy names you
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

pub struct Accepted {
    from: Day,
    to: Day,
    published: Published,
}

pub fn accept(ctx: &Context<'_>, args: &AcceptArgs) -> Result<Accepted> {
    let repo = ctx.repo()?;
    check_days(ctx, &Workspace::open(&repo)?, args)?;
    let published = ledger::publish(&repo, &|view| {
        let policy = Policy::at(&repo.git, view.policy.as_ref())?;
        policy.environment(&args.env)?;
        check_person(&policy, &args.who)?;
        Ok(Draft {
            kind: ledger::Kind::Accepted,
            who: args.who.clone(),
            subject: format!("{} to {}", args.from, args.to),
            environment: Some(args.env.clone()),
            why: args.why.clone(),
            facts: [
                ("from".to_owned(), json!(args.from.to_string())),
                ("to".to_owned(), json!(args.to.to_string())),
            ]
            .into(),
            tag: None,
        })
    })?;
    Ok(Accepted { from: args.from, to: args.to, published })
}

/// The days must be over and hold enough to be held against.
fn check_days(ctx: &Context<'_>, workspace: &Workspace<'_>, args: &AcceptArgs) -> Result<()> {
    let AcceptArgs { from, to, env, .. } = args;
    if from > to {
        return Err(Error::usage(format!("{from} comes after {to}")));
    }
    if *to >= Day::today() {
        let error = Error::usage(format!("{to} is not over (days are UTC)"));
        return Err(error.hint(format!("the last day that can be accepted is {}", Day::today().plus(-1))));
    }
    let days = traffic::sealed_days(&workspace.repo.files, env)?;
    if !days.iter().any(|it| (from..=to).contains(&it)) {
        return Err(Error::not_found(format!("no day from {from} to {to} of `{env}` is sealed"))
            .hint("`mlx traffic list` shows what is there"));
    }
    let sealed = reference::span(ctx, workspace, env, (*from, *to))?;
    let usable = sealed.values().flat_map(|it| &it.records).filter(|it| it.status == 200).count() as u64;
    let least = Thresholds::default().reference_rows;
    if usable < least {
        let text =
            format!("the days from {from} to {to} hold {usable} answered pictures; {least} are the least");
        return Err(Error::usage(text).hint("accept more days"));
    }
    Ok(())
}

/// Where the policy names people, it is one of them.
fn check_person(policy: &Policy, who: &str) -> Result<()> {
    if who.trim().is_empty() {
        return Err(Error::usage("nobody is named").hint("say who you are with --as"));
    }
    if policy.people.is_empty() || policy.people.contains_key(who) {
        return Ok(());
    }
    let known: Vec<&str> = policy.people.keys().map(String::as_str).collect();
    Err(Error::new(Kind::Denied, format!("the policy knows nobody called `{who}`"))
        .hint(format!("`{FILE}` names: {}", known.join(", "))))
}

impl Report for Accepted {
    fn json(&self) -> Value {
        json!({"from": self.from.to_string(), "to": self.to.to_string(), "environment": self.published.event.environment,
            "who": self.published.event.who, "event": self.published.rev.to_string(), "pushed_to": self.published.upstream})
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} to {} are the reference from now on", self.from, self.to)?;
        in_force(f, &self.published)
    }
}
