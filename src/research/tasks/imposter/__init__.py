"""The imposter study: can a generator be trained until a discriminator cannot tell its text from the author's?"""
