# ruff: noqa: E501 - a table, one fact a line
"""National identity numbers: how each is written, what checks it, and the words that name it. A table of facts.

The checks are python-stdnum's modules, which cite each country's own rules; those that it has not are in identity.py with their source.
A number whose form is its own and whose check is strong (`alone`) is believed without a word beside it; any other needs one.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LETTERED", "NUMBERED", "TAILED", "Lettered", "Rule"]


class Rule(NamedTuple):
    """`id`: country and number. `check`: a module of stdnum, or a function of identity.py with a colon before it, empty for none.

    `alone`: the forms that need no word beside them. `named`: those that do. A form is the sizes of the groups with what is between them,
    like 3-2-4. `words`: a pattern of the words that name the number.
    """

    id: str
    check: str
    alone: str
    named: str
    words: str


class Lettered(NamedTuple):
    """A number with letters: `pattern` in capitals, and the other values as a Rule has them; `alone`: whether it needs no word."""

    id: str
    pattern: str
    check: str
    alone: bool
    words: str


NUMBERED: tuple[Rule, ...] = (
    Rule("us_ssn", ":us_ssn", "3-2-4", "9|3 2 4|3.2.4|3 - 2 - 4", r"\bssn|social.?sec|soc\.? sec|\bss ?(?:#|no|number)"),
    Rule("us_ssn", "", "", "3-2-4|3 2 4", r"\bssn|social.?sec|soc\.? sec"),
    Rule("us_itin", "us.itin", "3-2-4", "9|3 2 4", r"\bitin|taxpayer|\btin\b"),
    Rule("us_ein", "us.ein", "", "2-7", r"\bein\b|employer id"),
    Rule("ca_sin", ":luhn", "", "9|3 3 3|3-3-3", r"\bsin\b|social insurance|assurance sociale|\bnas\b"),
    Rule("gb_nhs", "gb.nhs", "", "10|3 3 4|3-3-4", r"\bnhs\b"),
    Rule("gb_utr", "gb.utr", "", "10|5 5", r"\butr\b|taxpayer ref"),
    Rule("de_steuer_id", "de.idnr", "2 3 3 3", "11", r"steuer|\bidnr|\bid-?nr|identifikationsnummer|\btax\b|\btin\b"),
    Rule("at_svnr", "at.vnr", "", "10|4 6", r"sozialvers|\bsv-?n|versicherungsn|\bsvnr"),
    Rule("ch_ahv", "ch.ssn", "3.4.4.2|13", "3 4 4 2", r"\bahv|\bavs\b|sozialvers"),
    Rule("fr_nir", "fr.nir", "1 2 2 2 3 3 2|15|13 2|1 2 2 2 3 3 - 2", "1.2.2.2.3.3.2|1-2-2-2-3-3-2", r"s[eé]curit[eé] sociale|\bnir\b|\bsecu|sécu|\binsee"),
    Rule("fr_nif", "fr.nif", "", "13|2 2 3 3 3", r"fiscal|\bnif\b|\bspi\b|\bimp[oô]t"),
    Rule("it_partita", "it.iva", "", "11", r"partita|p\.? ?iva"),
    Rule("nl_bsn", "nl.bsn", "", "9|4.2.3|3.3.3|4 2 3|3 3 3|8", r"\bbsn\b|burgerservice|sofi|citizen service"),
    Rule("be_nn", "be.nn", "2.2.2-3.2", "11|6-3-2|2.2.2.3.2|2 2 2 3 2|6 3 2", r"rijksregister|registre national|national|\bnrn\b|\binsz|\bniss"),
    Rule("lu_matricule", "", "", "13", r"matricule"),
    Rule("pl_pesel", "pl.pesel", "", "11", r"pesel"),
    Rule("se_personnummer", "se.personnummer", "6-4|8-4|6+4", "10|12|6 4|8 4", r"person-?n|pers\.?nr|samordning|\bssn\b|identity"),
    Rule("no_fodselsnummer", "no.fodselsnummer", "6 5", "11|6-5", r"f[oø]dsels|person-?n|\bfnr\b|d-nummer"),
    Rule("dk_cpr", ":dk_cpr", "", "6-4|10|6 4", r"\bcpr\b|person-?n|personnummer"),
    Rule("is_kennitala", "is_.kennitala", "6-4", "10", r"kennitala|\bkt\b"),
    Rule("ee_isikukood", "ee.ik", "", "11", r"isikukood|\bik\b|personal (?:id|code)"),
    Rule("lt_asmens", "lt.asmens", "", "11", r"asmens|personal (?:id|code)"),
    Rule("lv_pk", "lv.pvn", "", "6-5|11", r"personas kod|\bpk\b|personal (?:id|code)"),
    Rule("cz_rc", "cz.rc", "6/4", "10|9|6/3", r"rodn[eé]|\br\.? ?[cč]\b|birth number"),
    Rule("sk_rc", "sk.rc", "", "6/4|6/3|10", r"rodn[eé]"),
    Rule("hu_taj", ":hu_taj", "", "9|3 3 3|3-3-3", r"\btaj\b"),
    Rule("ro_cnp", "", "", "13", r"\bcnp\b|cod numeric"),
    Rule("mx_nss", "", "", "11|2 2 2 4 1|2-2-2-4-1", r"\bnss\b|\bimss\b|seguro social"),
    Rule("hu_szemelyi", "", "", "11|1-6-4|1 6 4", r"szem[eé]lyi"),
    Rule("bg_egn", "bg.egn", "", "10", r"\bегн\b|\begn\b"),
    Rule("hr_oib", "hr.oib", "", "11", r"\boib\b"),
    Rule("si_emso", "si.emso", "", "13", r"emšo|emso|jmbg|matičn"),
    Rule("rs_jmbg", "rs.pib", "", "9", r"\bpib\b"),
    Rule("gr_amka", "gr.amka", "", "11", r"\bamka\b|αμκα"),
    Rule("gr_afm", "gr.vat", "", "9", r"\bafm\b|αφμ"),
    Rule("pt_nif", "pt.nif", "", "9|3 3 3", r"\bnif\b|contribuinte|\bnipc"),
    Rule("tr_tckimlik", "tr.tckimlik", "", "11", r"kimlik|\btckn|\bt\.?c\.? ?(?:no|kim)|\btc\b"),
    Rule("br_cpf", "br.cpf", "3.3.3-2", "11|3 3 3 2|9-2", r"\bcpf\b"),
    Rule("br_cnpj", "br.cnpj", "2.3.3/4-2", "14", r"\bcnpj\b"),
    Rule("ar_cuit", "ar.cuit", "2-8-1", "11", r"\bcui[tl]\b"),
    Rule("ar_dni", "ar.dni", "", "8|2.3.3", r"\bdni\b|documento"),
    Rule("co_nit", "co.nit", "", "9-1|3.3.3-1|10", r"\bnit\b"),
    Rule("cl_rut", "cl.rut", "2.3.3-1|1.3.3-1", "8-1|7-1|9", r"\brut\b|\brun\b"),
    Rule("ec_ci", "ec.ci", "", "10|9-1", r"c[eé]dula|\bci\b"),
    Rule("uy_ci", ":uy_ci", "1.3.3-1", "7-1|8", r"c[eé]dula|\bci\b"),
    Rule("pe_dni", "", "", "8", r"\bdni\b"),
    Rule("in_aadhaar", ":in_aadhaar", "4 4 4|4-4-4", "12", r"aadhaar|aadhar|\buid(?:ai)?\b|आधार"),
    Rule("cn_ric", ":cn_ric", "18|6 8 4", "", r"身份证"),
    Rule("kr_rrn", "kr.rrn", "6-7", "13", r"주민|\brrn\b|resident reg"),
    Rule("kr_rrn", "", "", "6-7", r"주민|\brrn\b|resident reg"),
    Rule("jp_my_number", ":jp_my_number", "", "12|4 4 4|4-4-4", r"マイナンバー|個人番号|my number"),
    Rule("my_nric", "my.nric", "6-2-4", "12", r"\bnric\b|mykad|\bic\b|kad pengenalan"),
    Rule("th_pin", "th.pin", "1-4-5-2-1|1 4 5 2 1", "13", r"บัตร|thai|citizen"),
    Rule("id_nik", ":id_nik", "", "16", r"\bnik\b|\bktp\b"),
    Rule("pk_cnic", "pk.cnic", "5-7-1", "13", r"\bcnic\b"),
    Rule("za_id", "za.idnr", "6 4 2 1|6 4 3", "13", r"\bid\b|identity|\brsa\b"),
    Rule("eg_tn", "", "", "14", r"الرقم القومي|national id"),
    Rule("il_id", "il.idnr", "", "9|8-1", r"תעודת|ת\.?ז|teudat|\bid\b|identity"),
    Rule("au_tfn", "au.tfn", "", "9|8|3 3 3|3-3-3", r"\btfn\b|tax file"),
    Rule("au_medicare", ":au_medicare", "4 5 1", "10|4-5-1|11|4 5 1 1", r"medicare"),
    Rule("nz_ird", "nz.ird", "", "9|8|3-3-3|2-3-3|3 3 3|2 3 3", r"\bird\b|inland rev"),
    Rule("ru_snils", ":ru_snils", "3-3-3 2|3-3-3-2", "11", r"снилс|snils"),
    Rule("ru_inn", "ru.inn", "", "12|10", r"\bинн\b|\binn\b"),
    Rule("ru_passport", "", "", "4 6|2 2 6|10", r"паспорт"),
    Rule("ua_rntrc", "ua.rntrc", "", "10", r"рнокпп|\bіпн\b|\bинн\b|rntrc"),
    Rule("kz_iin", ":kz_iin", "", "12", r"\bиин\b|\bжсн\b|\biin\b"),
    Rule("passport", "", "", "9|8|7|10", r"passport|reisepass|passeport|pasaporte|passaporto|护照|パスポート|여권|paszport|passnummer"),
    Rule("driver_license", "", "", "7|8|9|10|11|12|4-2-4|3-3-3|3 3 3|2 3 3", r"driv\w{1,5} lic|driver'?s? licen|driving licen|\bdl ?(?:#|no|number)|f[uü]hrerschein|permis de conduire"),
    Rule("national_id", "", "", "7|8|9|10|11|12|13|14", r"national id|\bid card|identity card|personal ?ausweis|c[eé]dula|documento de identidad|carte d.identit|carta d.identit|citizen id|nin\b|身份证|身分證"),
)  # fmt: skip
"""Numbers of digits alone."""

LETTERED: tuple[Lettered, ...] = (
    Lettered("it_codice_fiscale", r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-EHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]|[A-Z]{3} ?[A-Z]{3} ?[0-9]{2}[A-EHLMPRST][0-9]{2} ?[A-Z][0-9]{3}[A-Z]", "it.codicefiscale", True, ""),
    Lettered("mx_curp", r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[A-Z0-9][0-9]", "mx.curp", True, ""),
    Lettered("mx_rfc", r"[A-ZÑ&]{3,4}-?[0-9]{6}-?[A-Z0-9]{3}", "mx.rfc", False, r"\brfc\b"),
    Lettered("in_pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]", "in_.pan", True, ""),
    Lettered("gb_nino", r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]([ \-]?)[0-9]{2}\1[0-9]{2}\1[0-9]{2}\1[A-D]", "", True, ""),
    Lettered("gb_nino", r"[A-Z]{2}[ \-]?[0-9]{2}[ \-]?[0-9]{2}[ \-]?[0-9]{2}[ \-]?[A-Z]?", "", False, r"national insurance|\bni\b|\bnino\b"),
    Lettered("es_nie", r"[XYZ][ \-]?[0-9]{7}[ \-]?[A-Z]", "es.nie", True, ""),
    Lettered("sg_nric", r"[STFGM][0-9]{7}[A-Z]", ":sg_nric", True, ""),
    Lettered("hk_hkid", r"[A-Z]{1,2}[0-9]{6}\([0-9A]\)", ":hk_hkid", True, ""),
    Lettered("tw_id", r"[A-Z][12489][0-9]{8}", ":tw_id", True, ""),
    Lettered("ro_pass", r"[A-Z]{2} ?[0-9]{6}", "", False, r"carte de identitate|\bserie\b"),
    Lettered("gb_driver", r"[A-Z9]{5}[0-9]{6}[A-Z9]{2}[A-Z0-9][A-Z]{2}", "", False, r"driv|licen"),
    Lettered("passport", r"[A-Z]{1,2} ?[0-9]{6,9}|[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8,9}", "", False, r"passport|reisepass|passeport|pasaporte|passaporto|护照|パスポート|여권|paszport|ausweis"),
    Lettered("driver_license", r"[A-Z]{1,2}[ \-]?[0-9]{3,14}(?:-[0-9]{3,6}){0,3}", "", False, r"driv\w{1,5} lic|driver'?s? licen|driving licen|\bdl ?(?:#|no|number)|f[uü]hrerschein"),
    Lettered("pl_id_card", r"[A-Z]{3} ?[0-9]{6}", "", False, r"dow[oó]d"),
    Lettered("ua_id", r"[A-ZА-Я]{2} ?[0-9]{6}", "", False, r"паспорт"),
)  # fmt: skip
"""Numbers that begin with a letter: id, pattern, check, whether they need no word beside them, the words."""

TAILED: tuple[Lettered, ...] = (
    Lettered("es_dni", r"[0-9]{8}[ \-]?[A-HJ-NP-TV-Z]|[0-9]{2}\.[0-9]{3}\.[0-9]{3}[ \-]?[A-HJ-NP-TV-Z]", "es.dni", True, ""),
    Lettered("fi_hetu", r"[0-3][0-9][01][0-9]{3}[-+A-FU-Y][0-9]{3}[0-9A-Y]", "fi.hetu", True, ""),
    Lettered("fr_nir", r"[1-478] ?[0-9]{2} ?[0-9]{2} ?2[AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", "fr.nir", True, ""),
    Lettered("de_svnr", r"[0-9]{2} [0-3][0-9][01][0-9]{3} [A-Z] [0-9]{3}", "", True, ""),
    Lettered("de_svnr", r"[0-9]{2} ?[0-9]{6} ?[A-Z] ?[0-9]{3}", "", False, r"sozialvers|rentenvers|\bsv-?n|\brv-?n"),
    Lettered("pt_cc", r"[0-9]{8} ?[0-9] ?[A-Z][A-Z0-9][0-9]", "pt.cc", True, ""),
    Lettered("ie_pps", r"[0-9]{7}[A-W][ABHWTX]?", "ie.pps", False, r"\bpps"),
    Lettered("cn_ric", r"[1-9][0-9]{16}[Xx]", ":cn_ric", True, ""),
    Lettered("cl_rut", r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]", "cl.rut", True, ""),
    Lettered("cl_rut", r"[0-9]{7,8}-[0-9Kk]", "cl.rut", False, r"\brut\b|\brun\b"),
    Lettered("in_voter", r"[A-Z]{3}[0-9]{7}", "", False, r"voter|\bepic\b"),
)  # fmt: skip
"""Numbers of digits with letters behind or in the middle."""
