# ruff: noqa: E501 - a table, one fact a line
"""The words around a bare number that say what it is, or that it is something else."""

from __future__ import annotations

import re

from edgeai.routing.privacy.text import View

__all__ = [
    "AFTER_CHARS",
    "BEFORE_CHARS",
    "CARD",
    "COUNTED",
    "NO_PHONE",
    "PHONE",
    "PHONE_BEHIND",
    "PHONE_CLOSE",
    "named",
]

BEFORE_CHARS, AFTER_CHARS = 48, 20

PHONE = re.compile(
    r"\b(?:tele)?phones?\b|\b(?:tele)?phone_?(?:number|no|nr)|phonenumber|_phone\b|\bph\b|\btel\b|\btelephone|\btele?f(?:on|oon|oni|oonnummer)?\b"
    r"|\bmobile?\b|\bmobil(?:e|nummer|tel|telefon|ni|ny)\w{0,8}|\bcell(?:phone|ular)?\b|\bfax\b|\bcall(?:s|ed|ing)?\b|\bdial(?:l?ed|l?ing)?\b|\brang\b"
    r"|\bring (?:me|us|him|her|them|on|at)\b|\bhotline\b|\bwhats ?app\b|\bsignal:|\bviber\b|\bsms\b|\btext(?:ed)? (?:me|us|him|her|them|at|on|to)\b|\bmessages? (?:me|us|him|her|them|at|on|to)\b"
    r"|\bvoicemail\b|\bpager\b|\bcontact\b|\breach (?:me|us|him|her|them|out|at)\b|\breachable\b|\banswering\b|\bmy registered\b|\bmy number\b|\bphone number\b"
    r"|\bnumber is\b|\bhandy(?:nummer)?\b|\btelefon\w{0,8}|\brufnummer\b|\banruf\w{0,3}|\brufen?\b|\bdurchwahl\b|\btel[eé]fono\w?|\bm[oó]vil\b"
    r"|\bllam\w{1,6}|\bcelular\b|\bt[eé]l[eé]phone\w?|\btél\b|\bportable\b|\bappel\w{1,5}|\bjoindre\b|\bnum[eé]ro de t\w+|\bcellulare\b"
    r"|\bchiam\w{1,5}|\btelefone\w?|\btelem[oó]vel\b|\blig(?:ue|ar)\b|\btelefoon\w{0,7}|\bbel(?:len)?\b|\bgsm\b|\bpuhelin\w{0,6}|\bpuh\b|\bmatkapuhelin"
    r"|\bkom[oó]rk\w{1,3}|\bnr tel\b|\bzadzwo\w{1,3}|\bdzwo\w{1,4}|\btlf\b|\btelf\b|\btlfnr\b|\bmobilnummer\b|\bring(?:e|a)? \w{1,4}\b|\bτηλ\w{0,8}|\bκινητό\b"
    r"|телефон\w{0,3}|\bтел\b|\bмоб\w{0,7}|звон\w{1,5}|позвон\w{1,5}|電話|电话|手机|手機|携帯|联系|致电|전화|휴대폰|연락처|핸드폰"
    r"|فون|هاتف|جوال|موبايل|تلفن|טלפון|נייד|फोन|फ़ोन|मोबाइल|โทร|điện thoại|\bsđt\b|\btelepon\b|\bhp\b|\bcep tel|\barayın\b|\barayin\b"
)
"""Words for a telephone and for calling, in about thirty languages."""
PHONE_CLOSE = re.compile(
    r"(?:\b(?:office|home|work|desk|direct|main|landline|private|evening|day|m|t|p|f|c|o|h|d|w|at|on)\b[.)]?\s{0,2}[:.)=]\s{0,2}\(?|\boffice\s{1,2}|\bdesk\s{1,2})$"
)
PHONE_BEHIND = re.compile(
    r"[\s\-–,;(/\\]{0,4}\(?(?:office|mobile?|cell|fax|home|work|desk|direct|tel\b|phone|landline|ext\b|handy|portable|whatsapp)\b"
)
"""Words that say so only beside the number."""
NO_PHONE = re.compile(
    r"\b(?:order|invoice|ticket|case|ref|reference|tracking|serial|sku|part|account|acct|isbn|issn|ean|upc|gtin|imei|id|uid|pid|tid|ids|uuid|guid|hash|sha|commit|build|version|rev"
    r"|revision|issue|bug|port|size|bytes|offset|seed|zip|plz|rfc|doi|arxiv|pmid|patent|bestell\w{0,8}|rechnung\w{0,8}|auftrag\w{0,8}|kunden\w{0,8}|pedido|factura|commande"
    r"|facture|art\w{0,7}nr|line|row|page|section|timestamp|epoch|address|pointer|opcode|errno|code|total|sum|amount|price|model|population|approximately|about|roughly)\b\w{0,2}"
)
COUNTED = re.compile(
    r"\s{0,2}(?:times?|of\b|bytes?|[kmg]i?b\b|ms\b|ns\b|us\b|µs|s\b|seconds?|minutes?|hours?|days?|years?|users?|people|persons|entries|rows|lines|items|records|requests|calls|messages"
    r"|tokens|words|characters|chars|pixels|px\b|km\b|kg\b|mm\b|cm\b|m\b|miles|dollars|euros?|usd|eur|points|steps|iterations|subscribers|customers|downloads|samples|elements)"
)
"""What stands behind a number that counts something."""
CARD = re.compile(
    r"\bcards?\b|\bcredit|\bdebit|\bvisa\b|\bmaster ?card|\bamex\b|american express|\bmaestro\b|\bdiners\b|\bdiscover\b|\bjcb\b|\bunionpay\b|\bcc\b|\bpan\b|\bccn\b|\bcard_?n|kredit|karte|tarjeta|\bcarte\b"
    r"|\bcarta\b|cart[aã]o|\bkaart|\bkort\w{0,6}|\bkarta\b|\bkarty\b|карт|银行卡|信用卡|卡号|カード|카드|\bpayment|\bcharge"
)


def named(view: View, start: int, end: int, words: re.Pattern[str], avoid: re.Pattern[str] | None = None) -> bool:
    """Whether WORDS are near the characters START to END, in the heading of their column or before a word to AVOID."""
    if not view.near(words.pattern, start - BEFORE_CHARS, end + AFTER_CHARS):
        return bool(view.tables) and words.search(view.column(start)) is not None
    before = view.before(start, BEFORE_CHARS)
    last = max((match.start() for match in words.finditer(before)), default=-1)
    if last < 0 and not words.search(view.after(end, AFTER_CHARS).partition("\n")[0]):
        return bool(view.tables) and words.search(view.column(start)) is not None
    return avoid is None or all(match.start() <= last for match in avoid.finditer(before))
