//! `mlx monitor accept`: records on the audit chain that a range of days is the new reference for monitoring.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{approve::write_publication, baseline},
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
    /// First day to accept, as in 2026-03-15
    #[arg(long)]
    from: Day,
    /// Last day to accept
    #[arg(long)]
    to: Day,
    /// Environment in which the model serves
    #[arg(long, default_value = "production")]
    env: String,
    /// Your name, as in the policy
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
    /// Reason to record
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

/// Checks that the days are over and contain enough answered images to serve as a reference.
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
    if !days.iter().any(|day| (from..=to).contains(&day)) {
        return Err(Error::not_found(format!("no day from {from} to {to} in `{env}` is sealed"))
            .hint("`mlx traffic list` shows the sealed days"));
    }
    let sealed = baseline::sealed_span(ctx, workspace, env, (*from, *to))?;
    let records = sealed.values().flat_map(|it| &it.records);
    let answered = records.filter(|record| record.status == 200).count() as u64;
    let minimum = Thresholds::default().reference_rows;
    if answered < minimum {
        let text = format!(
            "the days from {from} to {to} have {answered} answered images; a reference needs {minimum}"
        );
        return Err(Error::usage(text).hint("accept a longer range of days"));
    }
    Ok(())
}

/// Checks that `who` is one of the people whom the policy names, if it names any.
fn check_person(policy: &Policy, who: &str) -> Result<()> {
    if who.trim().is_empty() {
        return Err(Error::usage("`--as` is empty").hint("pass your name: `--as PERSON`"));
    }
    if policy.people.is_empty() || policy.people.contains_key(who) {
        return Ok(());
    }
    let known: Vec<&str> = policy.people.keys().map(String::as_str).collect();
    Err(Error::new(Kind::Denied, format!("`{who}` is not listed in [people] of the policy"))
        .hint(format!("`{FILE}` names: {}", known.join(", "))))
}

impl Report for Accepted {
    fn json(&self) -> Value {
        json!({"from": self.from.to_string(), "to": self.to.to_string(),
            "environment": self.published.event.environment,
            "who": self.published.event.who, "event": self.published.rev.to_string(),
            "pushed_to": self.published.upstream})
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} to {} are the reference from now on", self.from, self.to)?;
        write_publication(f, &self.published)
    }
}
