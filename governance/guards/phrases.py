# ruff: noqa: E501 -- lists of phrases
"""Phrases that betray injections, unsafe and biased texts, in English and German; written as folded texts are.

The injection phrases were written from the published shapes of such attacks and the development part of the
deepset prompt-injection data (`benchmarks/guards.py` names the part that nobody looked at); the unsafe and biased ones from
the plain meaning of the categories, without any data. Lists of words find what they list: paraphrases pass.
"""

from governance.guards.detectors import Detector, Pattern, alternatives

__all__ = ["bias_detectors", "injection_detectors", "unsafe_detectors"]

LONGEST = 220
GAP = r"[^.!?\n]{0,40}?"
PREVIOUS = r"(?:previous|prior|earlier|above|preceding|all|any|the|your|these|those|everything|bisherige[nrs]?|vorherige[nrs]?|vorangehende[nrs]?|obige[nrs]?|alle[nrs]?|deine|ihre)"
ORDERS = (
    r"(?:instructions?|prompts?|rules?|guidelines?|directions?|commands?|orders?|context|documents?|programming|tasks?|"
    r"assignments?|restrictions?|anweisung(?:en)?|instruktion(?:en)?|befehle?n?|regeln?|vorgaben?|aufgaben?|informationen|"
    r"dokumente?n?|kontext|einschrankungen)"
)
DROP = r"(?:ignor(?:e|ing|iere[n]?)|disregard|forget|neglect|override|bypass|skip|drop|overlook|vergiss|vergessen sie|missachte[n]?|umgehe[n]?)"
HIDDEN = r"(?:system ?prompt|(?:initial|original|hidden|secret|full|entire|exact|prompt) (?:prompts?|instructions?|texts?)|your (?:instructions?|prompts?|rules|guidelines|programming)|(?:deine[nr]?|ihre[nr]?) (?:prompts?|prompt-?texte?|anweisungen|instruktionen|regeln)|prompt-?texte?)"
SHOW = r"(?:show|reveal|print|repeat|display|output|tell me|give me|leak|disclose|what (?:are|is|was|were)|zeig[e]?n?|nenn[e]?n?|wiederhol[e]?n?|verrat[e]?n?|gib|drucke|schreib[e]?n?|was (?:ist|sind|war|steht))"

INJECTION = {
    "override": (
        rf"{DROP}{GAP} {PREVIOUS}{GAP} {ORDERS}",
        rf"{DROP} (?:about )?(?:all (?:of )?)?(?:everything|that|this|it all|alles)(?: (?:above|before|before that|you know|"
        r"you were told|i said|davor|vorher|zuvor|bisherige|was))?\b",
        rf"(?:do not|dont|don'?n?t|never|nicht mehr) (?:follow|obey|answer according|beachte|befolge){GAP} {ORDERS}",
        rf"(?:abweichend|entgegen) (?:zu|von|den|der){GAP} {ORDERS}",
        r"(?:new|neue|weitere|andere) (?:tasks?|instructions?|anweisungen|aufgaben?|instruktionen) (?:follow|folgen?)",
        rf"(?:leave|put|remove|lassen sie|lass|lasse){GAP} {PREVIOUS}{GAP} {ORDERS}{GAP} (?:behind|aside|out of|hinter|beiseite)",
        r"(?:zaboravi|oublie[sz]?|olvid[ea]|ignor[a]|dimentica|vergeet) (?:sve|tout(?:es)?|tod[oa]s?|tutt[oei]|alle[s]?)",
        rf"{DROP} (?:the )?(?:above|foregoing|obige[nrs]?)|disregarding (?:the|all|any) ",
        r"(?:abandon|erase|delete|clear) all (?:of )?your (?:thoughts|memory|memories|previous)",
        rf"(?:all[e]?|your) (?:vorherigen|bisherigen|previous|prior) (?:informationen|information|angaben){GAP} (?:irrelevant|nicht|not|ungultig)",
        r"(?:your|deine|ihre) (?:instructions|anweisungen) (?:are|sind) (?:now|jetzt|ab jetzt)|(?:additional|zusatzliche) (?:instruction|anweisung)",
        r"do not (?:answer (?:this|the) question|look in the documents)|(?:but|and|to) just (?:output|say|print|respond)",
        r"(?:by|from) your own knowledge and not|despite what you(?:'ve| have| were)? (?:been )?told|contrary to (?:your|all|previous)",
        r"was sie sich merken mussen, ist|forget what (?:you|i|was)|streichen? und sich auf die neue",
        r"from now on,? (?:you|your|ignore)|ab (?:jetzt|sofort) (?:bist|sind|wirst|werden|ignorier)",
        r"(?:stop+|achtung)[ ,:.!-]{1,5}(?:ignor|forget|vergiss|write|schreib|ich benotige)",
        r"start (?:over|anew|again) (?:with|from)|fangen sie (?:von vorne|neu) an",
        r"concentrate on (?:the|your) new task|konzentrier(?:e|en) (?:dich|sie sich) (?:jetzt )?auf",
    ),
    "persona": (
        r"(?:i want you to|you (?:will|must|should|are going to)|please|now) (?:act|behave|pretend|roleplay|role-play|respond)"
        r" (?:as|like|to be|you)",
        r"you are (?:now|going to (?:act|be|pretend)|no longer)|du bist (?:jetzt|nun|ab sofort|kein[e]?)|sie sind (?:jetzt|nun|ab sofort)",
        r"(?:act|acts|answer|respond) as (?:a |an |the |if )?(?:linux|terminal|chatgpt|dan|evil|unrestricted|two|uncensored)",
        r"als (?:linux|debattierer|terminal)[a-z-]{0,20} (?:fungier|agier)|(?:als|wie) [a-z-]{2,30} fungier(?:en|st|e)",
        r"pretend (?:that |to |you |your )|imagine (?:that )?you are|stell(?:en)? (?:dir|sie sich) vor,? (?:du|sie|dass)",
        r"(?:now|okay|so),? you are |(?:nun|jetzt) (?:bist du|sind sie) |repeat after me",
        r"(?:are|is|bist|sind) (?:role-?playing|cast|an actor) (?:as|in)|in (?:deiner|ihrer|der) rolle (?:auf|bleib)|(?:always )?stay in (?:their|your|the) roles?",
        r"(?:do not|never|keine sekunde) (?:break|aus)[a-z ]{0,12} (?:character|rolle)|(?:film|movie|theaterstuck) (?:about|uber) (?:a|an|einen?|'nen) [a-z ]{0,12}(?:robbery|hack|raububerfall|heist)",
        r"(?:stay|remain|do not break) (?:in )?character|(?:in der rolle|schlupf)[a-z]{0,3} (?:bleib|in die rolle)",
    ),
    "jailbreak": (
        r"\bdan mode|do anything now|developer mode|jailbreak(?:en|ed)?|god mode|sudo mode|entwicklermodus",
        r"(?:without|no|free (?:of|from)|ohne|keine) (?:any )?(?:moral|ethical|content|safety|programming|ethische[nr]?|moralische[nr]?) "
        r"(?:restrictions?|guidelines?|limits?|filters?|policies|einschrankungen|richtlinien|filter)",
        r"(?:uncensored|unfiltered|amoral|completely immoral|unzensiert|ungefiltert)",
        r"(?:opposite|evil|forked version|hypothetical response)(?: of)? ?(?:mode|chatgpt|gpt)?\b.{0,20}(?:mode|chatgpt|gpt)",
    ),
    "prompt_theft": (
        rf"{SHOW}{GAP} {HIDDEN}",
        r"what was written (?:at the )?(?:beginning|start|above)|what (?:is|was|stands) (?:written )?above",
        r"(?:repeat|print|output|spell[- ]?check|translate|summarize) (?:everything|all|the (?:text|words|sentences?)) (?:above|before)",
        r"(?:was|wiederhole alles,? was) (?:oben|davor|am anfang) (?:steht|stand|geschrieben)",
    ),
    "markup": (
        r"<\|?(?:im_start|im_end|system|endoftext)\|?>|\[/?inst\]|<</?sys>>|### ?(?:system|instruction|human|assistant) ?:",
        r"(?:system|assistant|human|user) ?: ?(?:ignore|you are|forget|human|du bist|ignorier)",
        r"end of (?:prompt|instructions|document|context)|begin(?:ning)? of (?:new )?(?:prompt|instructions|system)",
    ),
}  # fmt: skip

GROUP = (
    r"(?:women|men|girls|boys|wives|muslims?|jews?|christians?|hindus?|blacks|black people|white people|whites|asians?|arabs?|africans?|"
    r"mexicans?|immigrants?|migrants?|refugees?|foreigners?|gays?|gay people|lesbians?|homosexuals?|trans(?:gender)? people|disabled people|"
    r"old people|the elderly|poor people|frauen|manner|madchen|muslime?|juden|christen|schwarze|weisse|auslander|migranten|"
    r"fluchtlinge|araber|turken|polen|homosexuelle|schwule|lesben|behinderte|alte menschen|arme)"
)
TRAIT = (
    r"(?:stupid|dumb|lazy|inferior|superior|weak|criminals?|dangerous|dirty|greedy|emotional|hysterical|disgusting|evil|terrorists?|"
    r"parasites?|animals|vermin|scum|worthless|subhuman|dumm|faul|minderwertig|uberlegen|kriminelle?|gefahrlich|schmutzig|gierig|"
    r"hysterisch|ekelhaft|bose|terroristen|parasiten|tiere|abschaum|wertlos|untermenschen|schwach|zu emotional)"
)
BIAS = {
    "generalisation": (
        rf"(?:all|most|every|these|typical|alle|die meisten|diese|typisch) {GROUP} (?:are|is|have|lack|cannot|can'?t|sind|haben|konnen)",
        rf"{GROUP} (?:are|is|sind) (?:all |just |nothing but |naturally |simply |alle |nur |von natur aus |einfach |so )?{TRAIT}",
        rf"{GROUP} (?:belong|gehoren) (?:in|to|into|at|an|zu|hinter) ",
        rf"{GROUP} (?:should|must|can|could|are|sollten|durfen|konnen|sind) ?(?:not|never|n'?t|nicht|nie|unable to|unfahig)"
        r" (?:be |to )?(?:allowed|permitted|trusted|vote|work|drive|lead|code|think|erlaubt|wahlen|arbeiten|fuhren|denken|lead)",
    ),
    "slur": (r"wetbacks?|raghead[s]?|towelhead[s]?|kanake[n]?|zigeunerpack|untermensch(?:en)?|subhumans?",),
}  # fmt: skip
HARM = r"(?:kill|murder|shoot|stab|hang|rape|burn|lynch|exterminate|gas|slaughter|behead)"
UNSAFE = {
    "threat": (
        rf"(?:i|we)(?:'ll| will| am going to| are going to|'m going to| want to| would love to) {HARM} (?:you|him|her|them|all|every)",
        r"(?:ich|wir) (?:werde[n]?|bringe[n]?|will|wollen) (?:dich|ihn|sie|euch|alle)[a-z ]{0,20} (?:um|umbringen|toten|erschiessen|abstechen)",
        r"you (?:will|are going to|should|deserve to) die\b|du (?:wirst|sollst|sollst) (?:sterben|verrecken)",
    ),
    "incitement": (
        rf"(?:let'?s|we (?:should|must|need to)|someone should|they should(?: all)? be|should(?: all)? be|deserve to be|must be) "
        rf"(?:all )?(?:{HARM}(?:ed|ned|bed|d|t)?|shot|hanged|eradicated|wiped out)",
        r"(?:sollte|muss|gehor)[a-z]{0,3} (?:man )?(?:alle |all )?(?:vergast|erschossen|aufgehangt|umgebracht|ausgerottet|getotet)",
        r"death to (?:all |the )?[a-z]{3,20}|tod (?:allen|den) [a-z]{3,20}",
    ),
    "self_harm": (
        r"(?:kill|hurt|harm|hang|cut) yourself\b|kys|end your (?:own )?life|commit suicide (?:by|with|using)",
        r"(?:bring|hang|schneid)[a-z]{0,2} dich (?:um|auf|selbst)|nimm dir das leben",
        r"best way to (?:kill (?:yourself|myself)|commit suicide|die)",
    ),
    "weapons": (
        r"(?:build|make|making|construct|assemble|bau(?:e|en|st)?|bastel[a-z]{0,2}) (?:a |an |the |your |einen? |eine )?(?:pipe ?bomb|nail bomb|"
        r"bomb|explosive[s]?|molotov|nerve agent|sarin|ricin|rohrbombe|bombe|sprengsatz|nervengift|rizin)",
        r"(?:synthesi[sz]e|cook|herstell(?:en|ung von)) (?:meth|methamphetamine|crystal meth|fentanyl|heroin|sarin|ricin|rizin)",
    ),
}  # fmt: skip


def injection_detectors() -> list[Detector]:
    """One per shape: ``override``, ``persona``, ``jailbreak``, ``prompt_theft``, ``markup``."""
    return _detectors(INJECTION)


def unsafe_detectors() -> list[Detector]:
    """One per category: ``threat``, ``incitement``, ``self_harm``, ``weapons``."""
    return _detectors(UNSAFE)


def bias_detectors() -> list[Detector]:
    """``generalisation`` and ``slur``."""
    return _detectors(BIAS)


def _detectors(groups: dict[str, tuple[str, ...]]) -> list[Detector]:
    return [
        Pattern(kind, rf"(?i)(?:{'|'.join(phrases)})", longest=LONGEST)
        if kind == "markup"  # starts and ends with signs, so there are no word boundaries
        else alternatives(kind, phrases, longest=LONGEST)
        for kind, phrases in groups.items()
    ]
