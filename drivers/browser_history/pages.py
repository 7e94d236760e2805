"""What an address and a title say about a page: its identity, its site, and how much it looks like something to read."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

MAX_URL = 2000
"""Characters of an address that are kept."""

_TRACKING = re.compile(
    r"(utm_\w*|pk_\w*|mtm_\w*|hsa_\w*|mc_[ce]id|(fb|g|y)clid|gclsrc|dclid|msclkid|twclid|ttclid|igshid|igsh|_ga|_gl|_hs\w*"
    r"|vero_\w*|oly_\w*|spm|scm|cmp|cmpid|ocid|ito|smid|smtyp|ref|ref_src|ref_url|referrer|fb_\w*|__twitter_\w*|guccounter"
    r"|guce_\w*|at_\w*|wt_mc|amp|share|feature|si|xtor|ns_\w*|trk|trkinfo|mkt_tok|campaign_id|taid)",
    re.IGNORECASE,
)
_SEARCH_ARGUMENTS = ("q", "query", "search_query", "search", "s", "p", "text", "wd", "keyword", "keywords", "k", "term")
_SEARCH_PATHS = re.compile(r"/(search\w*|results?|find|s|html|web|suche|recherche|buscar)?/?", re.IGNORECASE)
_PRIVATE_WORDS = frozenset(
    "login signin signup sign-in sign-up log-in logout register auth oauth oauth2 authorize sso account accounts settings "
    "preferences password verify consent checkout cart basket order orders billing admin dashboard inbox compose "
    "notifications messages profile unsubscribe".split()
)
_APP_HOSTS = frozenset(
    "mail webmail email inbox outlook calendar drive accounts account login auth sso id meet chat messages web app apps "
    "console dashboard my portal teams slack".split()
)
_FEED_HOSTS = frozenset(
    "twitter x facebook instagram tiktok linkedin pinterest reddit mastodon bsky threads tumblr snapchat".split()
)
_SHOP = re.compile(r"/(dp|gp|itm|item|product|products|p|shop|store|buy|listing|offer|offers)(/|$)", re.IGNORECASE)
_LISTING = re.compile(
    r"/(tags?|categor(y|ies)|topics?|archives?|authors?|sections?|page|latest|feed|forums?|boards?)(/|$)", re.I
)
_READING = re.compile(
    r"/(blogs?|posts?|articles?|news|story|stories|features?|essays?|opinion|magazine|guides?|tutorials?|how-?to|recipes?|wiki"
    r"|papers?|abs|science|world|research|reviews?|p)/",
    re.IGNORECASE,
)
_DATED = re.compile(r"/(19|20)\d\d[/-]?(\d\d|[a-z]{3})\b|[-/](19|20)\d{6}\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SITE_SUFFIX = re.compile(r"\s+[-|–—·•»:]{1,2}\s+(?=[^-|–—·•»]*$)")


def is_page(url: str) -> bool:
    """A page of the web or of this network; not a browser's own, an extension's, a file's or inline data's."""
    return url.startswith(("http://", "https://"))


def clean_url(url: str) -> str:
    """The address without what only tracks: campaign parameters, the fragment unless a page routes by it."""
    parts = urlsplit(url)
    query = parts.query
    if query:
        pairs = parse_qsl(query, keep_blank_values=True)
        kept = [(name, value) for name, value in pairs if not _TRACKING.fullmatch(name)]
        if len(kept) < len(pairs):  # an address that has none keeps its own spelling
            query = urlencode(kept)
    fragment = parts.fragment if parts.fragment.startswith(("/", "!")) else ""
    return parts._replace(query=query, fragment=fragment).geturl()


def page_key(url: str) -> str:
    """Equal for addresses of the same page: without scheme, `www.`, tracking, AMP and a final slash."""
    parts = urlsplit(clean_url(url))
    path = re.sub(r"/amp/?$", "", parts.path).rstrip("/")
    return parts._replace(scheme="", netloc=host_of(url), path=path).geturl().removeprefix("//")


def host_of(url: str) -> str:
    """Host in lower case without `www.`, with a port that is not the scheme's own."""
    parts = urlsplit(url)
    host = (parts.hostname or "").removeprefix("www.")
    try:
        port = parts.port
    except ValueError:
        port = None
    return host if port in (None, 80, 443) else f"{host}:{port}"


def search_terms(url: str) -> str:
    """What was searched for, when the address is a search's answer; otherwise empty."""
    parts = urlsplit(url)
    if not parts.query or not _SEARCH_PATHS.fullmatch(parts.path):
        return ""
    arguments = dict(parse_qsl(parts.query))
    return next((arguments[name] for name in _SEARCH_ARGUMENTS if arguments.get(name)), "")


def url_words(url: str) -> str:
    """The words of host and path, which often hold the headline."""
    parts = urlsplit(url)
    return " ".join(_WORD.findall(f"{host_of(url)} {unquote(parts.path)}".replace("_", " ")))[:400]


def split_title(title: str) -> tuple[str, str]:
    """Headline and site: `A story - The Paper` is (`A story`, `The Paper`). The site is empty where none is told."""
    parts = _SITE_SUFFIX.split(title.strip())
    if len(parts) < 2 or len(parts[-1]) > 40 or len(parts[0]) < len(parts[-1]) / 2:
        return title.strip(), ""
    return title[: title.rindex(parts[-1])].rstrip(" -|–—·•»:"), parts[-1].strip()


def reads_like_article(url: str, title: str) -> float:
    """0 for a search, a login, a mailbox or a front page; about 0.5 for any page; up to 1 for what looks like an article."""
    parts = urlsplit(url)
    labels = host_of(url).split(".")
    segments = [segment.lower() for segment in parts.path.split("/") if segment]
    site = labels[-2] if len(labels) > 1 else labels[0]
    if search_terms(url) or not segments or (len(segments) == 1 and len(segments[0]) <= 3):
        return 0.05
    if _PRIVATE_WORDS.intersection(segments) or _APP_HOSTS.intersection(labels[:-2]):
        return 0.05
    if site in _FEED_HOSTS and len(segments) < 3:
        return 0.05
    headline, _ = split_title(title)
    slug = max(len(_WORD.findall(segment.replace("_", " "))) for segment in segments)
    score = 0.35
    score += 0.25 * (slug >= 3) + 0.1 * (slug >= 5)
    score += 0.15 * bool(_DATED.search(parts.path)) + 0.15 * bool(_READING.search(parts.path))
    score += 0.15 * (len(headline.split()) >= 5)
    score -= 0.25 * bool(_SHOP.search(parts.path)) + 0.2 * bool(_LISTING.search(parts.path))
    score -= 0.1 * (not title)
    return min(1.0, max(0.0, score))
