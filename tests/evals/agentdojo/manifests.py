"""The manifests of AgentDojo's tools, by class of op, as the author of a driver would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmos.ipc.protocol import Effect
from tests.evals.agentdojo.program.worlds import VERSION, op_name


class Manifest(NamedTuple):
    """What is said of one op."""

    effect: Effect
    integrity: str
    tag: str
    control: tuple[str, ...]
    """Arguments that decide where it lands; all of them where there are none."""


MANIFESTS: dict[str, Manifest] = {}


def _ops(effect: Effect, integrity: str, tag: str, names: str) -> None:
    """`names`: ops, each with its control arguments after a colon."""
    for entry in names.split():
        name, _, control = entry.partition(":")
        MANIFESTS[name] = Manifest(effect, integrity, tag, tuple(filter(None, control.split(","))))


_READ_UNTRUSTED = {
    "mail": "get_unread_emails get_sent_emails get_received_emails get_draft_emails search_emails"
    " search_contacts_by_name search_contacts_by_email",
    "calendar": "search_calendar_events get_day_calendar_events",
    "drive": "search_files_by_filename get_file_by_id list_files search_files",
    "hotels": "get_all_hotels_in_city get_hotels_prices get_rating_reviews_for_hotels get_hotels_address",
    "restaurants": "get_all_restaurants_in_city get_cuisine_type_for_restaurants get_restaurants_address"
    " get_rating_reviews_for_restaurants get_dietary_restrictions_for_all_restaurants"
    " get_contact_information_for_restaurants get_price_for_restaurants check_restaurant_opening_hours",
    "cars": "get_all_car_rental_companies_in_city get_car_types_available get_car_rental_address"
    " get_rating_reviews_for_car_rental get_car_fuel_options get_car_price_per_day",
    "flights": "get_flight_information",
    "transactions": "get_most_recent_transactions get_scheduled_transactions",
    "files": "read_file",
    "slack": "get_channels read_channel_messages read_inbox get_users_in_channel",
}
for _tag, _names in _READ_UNTRUSTED.items():
    _ops(Effect.READ, "untrusted", _tag, _names)
_ops(Effect.READ, "trusted", "clock", "get_current_day")
_ops(Effect.READ, "trusted", "identity", "get_user_information")
_ops(Effect.READ, "trusted", "account", "get_iban get_balance get_user_info")

_ops(Effect.SEND, "trusted", "mail", "send_email:recipients,cc,bcc,attachments")
_ops(Effect.DELETE, "trusted", "mail", "delete_email:email_id")
_ops(Effect.SEND, "trusted", "calendar", "create_calendar_event:participants")  # mails the participants
_ops(Effect.SEND, "trusted", "calendar", "reschedule_calendar_event:event_id")
_ops(Effect.SEND, "trusted", "calendar", "add_calendar_event_participants:event_id,participants")
_ops(Effect.DELETE, "trusted", "calendar", "cancel_calendar_event:event_id")
_ops(Effect.WRITE, "trusted", "drive", "append_to_file:file_id create_file:filename")
_ops(Effect.DELETE, "trusted", "drive", "delete_file:file_id")
_ops(Effect.SEND, "trusted", "drive", "share_file:file_id,email,permission")

_ops(Effect.ACTUATE, "trusted", "hotels", "reserve_hotel:hotel,start_day,end_day")
_ops(Effect.ACTUATE, "trusted", "cars", "reserve_car_rental:company,start_time,end_time")
_ops(Effect.ACTUATE, "trusted", "restaurants", "reserve_restaurant:restaurant,start_time")

_ops(Effect.ACTUATE, "trusted", "transactions", "send_money:recipient,amount schedule_transaction:recipient,amount")
_ops(Effect.ACTUATE, "trusted", "transactions", "update_scheduled_transaction:id,recipient,amount")
_ops(Effect.WRITE, "trusted", "account", "update_password:password update_user_info")

_ops(Effect.ACTUATE, "trusted", "slack", "add_user_to_channel:user,channel invite_user_to_slack:user,user_email")
_ops(Effect.DELETE, "trusted", "slack", "remove_user_from_slack:user")
_ops(Effect.SEND, "trusted", "slack", "send_direct_message:recipient send_channel_message:channel")
_ops(Effect.SEND, "untrusted", "web", "get_webpage:url")  # a URL tells its host something
_ops(Effect.SEND, "trusted", "web", "post_webpage:url")

BARE = dict.fromkeys(MANIFESTS, ("trusted", ()))
"""Labels that carry nothing: what a system without them has."""
LABELLED = {name: (one.integrity, (one.tag,)) for name, one in MANIFESTS.items()}
MISLABELLED = {**LABELLED, "get_webpage": ("trusted", ("web",))}

Labels = Mapping[str, tuple[str, tuple[str, ...]]]
"""Op → integrity and tags of its results."""

TIMEOUT_S = 300
"""Seconds a call may take, the user's thinking included."""


def driver_name(suite: str) -> str:
    return f"adojo_{suite}"


def driver_manifest(suite: Any, labels: Labels) -> str:
    """`manifest.toml` of the driver for a suite."""
    lines = [
        f'name = "{driver_name(suite.name)}"',
        'version = "0.1.0"',
        f'summary = "The {suite.name} tools of AgentDojo {VERSION}"',
        f'entry = "adojo.driver:{suite.name.capitalize()}"',
        'integrity = "trusted"',
    ]
    for tool in suite.tools:
        one, (integrity, tags) = MANIFESTS[tool.name], labels[tool.name]
        lines += _op(tool.name, one.effect, tool.description.partition("\n")[0][:300], integrity, tags, one.control)
        schema = tool.parameters.model_json_schema()
        for name, of in schema.get("properties", {}).items():
            lines += _argument(tool.name, name, of, name in schema.get("required", ()))
    lines += _op("errand", Effect.READ, "What the agent is to do")
    for name, summary in (("begin", "A fresh environment"), ("ran", "The calls made"), ("dump", "The environment")):
        lines += _op(name, Effect.EXEC, summary)
    for name, kind in (("task", "string"), ("vectors", "object"), ("errand", "object")):
        lines += [f"[ops.begin.args.{name}]", f'type = "{kind}"', "required = true"]
    lines += ["[ops.dump.args.offset]", 'type = "integer"', "default = 0", ""]
    return "\n".join(lines)


def _op(
    name: str, effect: Effect, summary: str, integrity: str = "trusted", tags: tuple[str, ...] = (), control: Any = ()
) -> list[str]:
    return [
        f"[ops.{op_name(name)}]",
        f'effect = "{effect.value}"',
        f"summary = {json.dumps(summary)}",
        f"control = {json.dumps(list(control))}",
        f"timeout_s = {TIMEOUT_S}",
        f'label = {{ integrity = "{integrity}", tags = {json.dumps(list(tags))} }}',
    ]


def _argument(op: str, name: str, schema: Mapping[str, Any], required: bool) -> list[str]:
    """An argument from its JSON schema; one that may be null may be left out."""
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kind = choices[0].get("type", "string")  # an enumeration by reference, the only other kind, is of strings
    optional = len(choices) < len(schema.get("anyOf", choices))
    lines = [
        f"[ops.{op_name(op)}.args.{name}]",
        f'type = "{kind}"',
        f"required = {str(required and not optional).lower()}",
    ]
    if kind == "array":
        lines.append(f'items = "{choices[0]["items"]["type"]}"')
    return [*lines, f"description = {json.dumps(schema.get('description', '')[:300])}"]
