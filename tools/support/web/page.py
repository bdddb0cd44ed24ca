"""The page: what is on it, and what happens when a visitor does something."""

import html
from pathlib import Path

import gradio as gr

from support import cli
from support.web.finder import Finder
from support.web.uploads import Limits, read
from support.web.views import COLUMNS, LAYERS, View, view
from support.web.visitors import Visitors

STYLE = """
#upload img, #picture img { max-height: 60vh; object-fit: contain; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; }
.legend .entry { white-space: nowrap; }
.legend i { display: inline-block; width: 1em; height: 1em; margin-right: 6px;
            border-radius: 3px; vertical-align: -0.15em; }
"""

DOES = {
    'detection': 'finds objects',
    'segmentation': 'labels each pixel, one',
    'classification': 'tells what an image shows, one',
}


class Answers:
    """What a visitor's doings lead to.

    Each answer is one value for each of: picture, sentence, legend, table, PNG, JSON, label map,
    layers.
    """

    def __init__(self, finder: Finder, visitors: Visitors, limits: Limits) -> None:
        self._finder, self._visitors, self._limits = finder, visitors, limits

    def find(self, file: dict | None, request: gr.Request) -> list:
        """Search an upload; one that is refused goes, and the reason alone is shown."""
        unchanged = [gr.skip()] * 9
        if file is None:  # it was refused, or cleared
            return unchanged
        visitor = self._visitors.get(request.session_hash)
        try:
            self._visitors.uploaded(visitor, file['path'])
            picture = read(file['path'], self._limits)
        except cli.UserError as error:
            self._visitors.uploaded(visitor, None)
            return [None, *_nothing(f'**Refused:** {html.escape(str(error))}')]
        found = self._finder.find(picture)
        if self._visitors.is_open(request.session_hash):  # else the page was closed meanwhile
            visitor.found = found
        return unchanged

    def show(self, threshold: float, layers: list[str], request: gr.Request) -> list:
        """What was found, as it is wanted now; nothing is computed again."""
        visitor = self._visitors.get(request.session_hash)
        if visitor.found is None:
            return [gr.skip()] * 8
        shown: View = view(visitor.found, self._finder, threshold, layers)
        files = visitor.write(shown)
        download = [
            gr.update(value=files.get(suffix), visible=suffix in files)
            for suffix in ('.png', '.json', '.labels.png')
        ]
        choose = gr.update(visible=shown.masked)
        return [files['.png'], shown.sentence, shown.legend, shown.rows, *download, choose]

    def clear(self, request: gr.Request) -> list:
        self._visitors.uploaded(self._visitors.get(request.session_hash), None)
        return _nothing('')

    def leave(self, request: gr.Request) -> None:
        self._visitors.leave(request.session_hash)


def _nothing(sentence: str) -> list:
    hidden = [gr.update(value=None, visible=False)] * 3
    return [None, sentence, '', [], *hidden, gr.skip()]


def build(
    finder: Finder, visitors: Visitors, limits: Limits, examples: list[Path], threshold: float
) -> gr.Blocks:
    """The page of a model; its events wait in a queue, and the model serves one at a time.

    Args:
        examples: pictures to try.
        threshold: least score shown, before the visitor chooses one.
    """
    answers = Answers(finder, visitors, limits)
    objects = finder.task == 'detection'
    classes = [str(name) for name in finder.meta['classes']]
    what = DOES[finder.task]
    with gr.Blocks(title=finder.name, analytics_enabled=False) as page:
        gr.HTML(
            f'<h1>{html.escape(finder.name)}</h1>{html.escape(Path(finder.source).name)} {what} of '
            f'{len(classes)} class{"" if len(classes) == 1 else "es"}. Images of at most {limits}, '
            'kept only while this page is open.'
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.Image(
                    sources=['upload', 'clipboard', 'webcam'],
                    label='Image',
                    elem_id='upload',
                )
                if examples:
                    gr.Examples([[str(each)] for each in examples], upload, elem_id='examples')
                slider = gr.Slider(
                    0,
                    1,
                    threshold,
                    step=0.01,
                    label='Least score shown',
                    visible=objects,
                    elem_id='threshold',
                )
                layers = gr.CheckboxGroup(
                    LAYERS, value=LAYERS, label='Draw', visible=False, elem_id='layers'
                )
                with gr.Accordion(f'Classes ({len(classes)})', open=False):
                    gr.HTML(html.escape(', '.join(classes)), elem_id='classes')
            with gr.Column(scale=3, min_width=320):
                picture = gr.Image(
                    label='Found', interactive=False, buttons=['fullscreen'], elem_id='picture'
                )
                sentence = gr.Markdown(elem_id='sentence')
                legend = gr.HTML(elem_id='legend')
                table = gr.Dataframe(
                    headers=COLUMNS[finder.task],
                    interactive=False,
                    max_height=320,
                    elem_id='table',
                )
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(
                            f'Download {name}', visible=False, size='md', elem_id=name.split()[0]
                        )
                        for name in ('PNG', 'JSON', 'labels as PNG')
                    ]
        shown = [picture, sentence, legend, table, *downloads, layers]
        quiet = dict(api_visibility='private', concurrency_limit=1)
        found = upload.change(
            answers.find,
            upload,
            [upload, *shown],
            show_progress_on=picture,
            preprocess=False,  # Gradio would decode it before anybody has looked how large it is
            **quiet,
        )
        upload.clear(answers.clear, None, shown, **quiet)
        again = dict(show_progress='hidden', trigger_mode='always_last', **quiet)
        found.then(answers.show, [slider, layers], shown, **again)
        gr.on([slider.change, layers.input], answers.show, [slider, layers], shown, **again)
        page.unload(answers.leave)
    return page
