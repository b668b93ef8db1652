"""The part of the Hugging Face hub's protocol that downloads use, for a server on this machine."""

import hashlib

from serving import head

COMMITS = {'main': 'a' * 40, 'v2': 'b' * 40}


def hub_with(files, cut_off=False):
    """Return an answer for ``serving``: a hub with these files, their contents by ``ORGANISATION/NAME/FILE``.

    Any repository has the revisions of ``COMMITS``. A file whose content is a number is refused with that status, as a
    gated one. With ``cut_off`` every download ends early.
    """

    def answer(handler):
        if '/resolve/' not in handler.path:
            head(handler, 404, 0)  # what the package asks for beside
            return
        organisation, name, _, revision, file = handler.path.strip('/').split('/', 4)
        repository = f'{organisation}/{name}'
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        content = files.get(f'{repository}/{file}')
        if not any(each.startswith(f'{repository}/') for each in files):
            head(handler, 404, 0, X_Error_Code='RepoNotFound')
        elif commit is None:
            head(handler, 404, 0, X_Error_Code='RevisionNotFound')
        elif content is None:
            head(handler, 404, 0, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
        elif isinstance(content, int):
            head(handler, content, 0, X_Error_Code='GatedRepo')
        else:
            tag = hashlib.sha256(content).hexdigest()
            head(handler, 200, len(content), ETag=f'"{tag}"', X_Repo_Commit=commit)
            if handler.command == 'GET':
                handler.wfile.write(content[: len(content) // 2] if cut_off else content)

    return answer
