# ruff: noqa: E501 - a table, one fact a line
"""How the keys of providers begin, and what follows; one line each.

Sources: docs.github.com/code-security/secret-scanning (supported patterns), docs.gitlab.com/security/tokens, the providers' own pages on
their keys, and the rules of gitleaks 8 (github.com/gitleaks/gitleaks, config/gitleaks.toml), read 2026. Lengths are taken a little
wider than today's, because providers lengthen them.
"""

from __future__ import annotations

__all__ = ["PROVIDERS"]

PROVIDERS: tuple[tuple[str, str], ...] = (
    ("anthropic", r"sk-ant-[\w-]{16,300}"),
    ("openrouter", r"sk-or-[\w-]{20,200}"),
    ("openai", r"sk-(?:proj|svcacct|admin|None)-[\w-]{16,300}|sk-(?=[\w-]{0,80}[0-9])[A-Za-z0-9][\w-]{18,200}|sess-[A-Za-z0-9]{40,60}"),
    ("stripe", r"[srp]k_(?:live|test)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/=]{24,80}"),
    ("github", r"gh[pousr]_[A-Za-z0-9_]{20,255}|github_pat_[A-Za-z0-9_]{22,255}"),
    ("gitlab", r"gl(?:pat|ptt|dt|rt|cbt|ft|soat|imt|agent|oas|ffct)-[\w.\-]{20,320}|GR1348941[\w-]{20,40}"),
    ("aws", r"(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|AIPA|ANPA|ANVA)[A-Z0-9]{16}(?![A-Za-z0-9])|ABSK[A-Za-z0-9+/=]{60,300}"),
    ("google", r"AIza[\w-]{32,40}|GOCSPX-[\w-]{20,40}|ya29\.[\w-]{20,300}|1//0[\w-]{30,120}"),
    ("slack", r"xox[abceoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,200}|hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,80}"),
    ("twilio", r"(?:AC|SK)[0-9a-f]{32}(?![0-9A-Za-z])"),
    ("sendgrid", r"SG\.[\w-]{16,32}\.[\w-]{16,64}"),
    ("npm", r"npm_[A-Za-z0-9]{30,50}"),
    ("pypi", r"pypi-[A-Za-z0-9_-]{32,300}"),
    ("huggingface", r"hf_[A-Za-z0-9]{20,60}|api_org_[A-Za-z0-9]{30,40}"),
    ("telegram", r"[0-9]{8,10}:(?:AA)[\w-]{32,35}(?![\w-])"),
    ("discord", r"[MNO][A-Za-z0-9_-]{22,30}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,45}|discord(?:app)?\.com/api/webhooks/[0-9]{16,20}/[\w-]{40,80}"),
    ("databricks", r"dapi[0-9a-f]{30,34}(?:-\d)?(?![0-9A-Za-z])"),
    ("digitalocean", r"do[opr]_v1_[a-f0-9]{60,64}"),
    ("shopify", r"shp(?:at|ca|pa|ss|ka)_[a-fA-F0-9]{30,32}"),
    ("square", r"sq0[a-z]{3}-[\w-]{20,50}|EAAA[\w-]{56,64}"),
    ("mailgun", r"key-[0-9a-zA-Z]{32}(?![0-9A-Za-z])"),
    ("mailchimp", r"[0-9a-f]{32}-us[0-9]{1,2}(?![0-9A-Za-z])"),
    ("heroku", r"HRKU-[\w-]{36,80}"),
    ("azure", r"AccountKey=[A-Za-z0-9+/]{60,90}={0,2}|[\w~.]{3}8Q~[\w~.-]{31,34}|sig=[A-Za-z0-9%+/]{40,70}%3D"),
    ("linear", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,64}"),
    ("notion", r"ntn_[A-Za-z0-9]{40,60}|secret_[A-Za-z0-9]{43}(?![A-Za-z0-9])"),
    ("figma", r"fig[dorau]{1,2}_[\w-]{30,60}"),
    ("atlassian", r"ATATT3[\w\-=]{60,260}|ATCTT3[\w\-=]{60,260}"),
    ("vault", r"hv[sbr]\.[\w-]{20,200}"),
    ("terraform", r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{40,80}"),
    ("grafana", r"glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}|glc_[A-Za-z0-9+/=]{32,400}"),
    ("newrelic", r"NRAK-[A-Z0-9]{27}|NRII-[\w-]{32}"),
    ("sentry", r"sntry[su]_[A-Za-z0-9+/=_]{40,300}"),
    ("docker", r"dckr_(?:pat|oat)_[\w-]{24,60}"),
    ("supabase", r"sb[pf]?_(?:secret_|publishable_)?[A-Za-z0-9_-]{30,60}"),
    ("planetscale", r"pscale_(?:tkn|pw|oauth)_[\w.-]{32,64}"),
    ("pinecone", r"pcsk_[A-Za-z0-9_]{40,100}"),
    ("perplexity", r"pplx-[A-Za-z0-9]{32,64}"),
    ("groq", r"gsk_[A-Za-z0-9]{32,64}"),
    ("xai", r"xai-[A-Za-z0-9]{40,100}"),
    ("replicate", r"r8_[A-Za-z0-9]{30,50}"),
    ("nvidia", r"nvapi-[\w-]{40,90}"),
    ("postman", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),
    ("rubygems", r"rubygems_[a-f0-9]{48}"),
    ("crates", r"cio[A-Za-z0-9]{32}(?![A-Za-z0-9])"),
    ("brevo", r"xkeysib-[a-f0-9]{40,70}-[A-Za-z0-9]{12,20}"),
    ("facebook", r"EAA[A-Z][A-Za-z0-9]{60,300}"),
    ("dropbox", r"sl\.[\w-]{100,300}"),
    ("age", r"AGE-SECRET-KEY-1[A-Z0-9]{50,60}"),
    ("doppler", r"dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{38,60}"),
    ("okta", r"SSWS 00[\w-]{38,42}"),
    ("alibaba", r"LTAI[A-Za-z0-9]{12,24}(?![A-Za-z0-9])"),
    ("tencent", r"AKID[A-Za-z0-9]{32,48}"),
    ("cloudflare", r"v1\.0-[a-f0-9]{24}-[a-f0-9]{100,160}|cfut_[\w-]{40,60}"),
    ("amazon_mws", r"amzn\.mws\.[0-9a-f-]{36}"),
    ("tailscale", r"tskey-[\w-]{20,80}"),
    ("fly", r"fo1_[\w-]{40,60}|FlyV1 fm\d+[\w+/=-]{60,400}"),
    ("onepassword", r"ops_eyJ[\w+/=]{60,900}"),
    ("launchdarkly", r"(?:sdk|mob|api)-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"),
)  # fmt: skip
"""Name of the provider, and the pattern of its keys."""
